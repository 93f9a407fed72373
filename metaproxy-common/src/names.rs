//! The names of programs and maps, as `bpftool` shows them. All begin with [`PREFIX`], by which operators recognize
//! what belongs to metaproxy, and fit the kernel's limit of 15 bytes.

/// The prefix of all names.
pub const PREFIX: &str = "mp_";

/// `connect()` of an IPv4 socket.
pub const CONNECT4: &str = "mp_connect4";
/// `connect()` of an IPv6 socket, IPv4-mapped addresses included.
pub const CONNECT6: &str = "mp_connect6";
/// Connection events of pods' sockets: this program writes the caller's option.
pub const SOCK_OPS: &str = "mp_sock_ops";
/// Connection events of the agent's sockets: this program verifies the caller's option.
pub const LISTENER_OPS: &str = "mp_listener_ops";
/// `getpeername()` of an IPv4 socket.
pub const GETPEERNAME4: &str = "mp_getpeername4";
/// `getpeername()` of an IPv6 socket.
pub const GETPEERNAME6: &str = "mp_getpeername6";

/// The [`Config`](crate::layout::Config), one element.
pub const CONFIG: &str = "mp_config";
/// The destinations of single network namespaces, by netns cookie.
pub const DESTINATIONS: &str = "mp_dests";
/// The cgroup ids of pods that are intercepted in the node's network namespace too: hostNetwork pods that have a
/// role, and all pods with a network of their own.
pub const HOST_PODS: &str = "mp_host_pods";
/// The [`PodFamily`](crate::layout::PodFamily) of pods that differ from the others in it, by the ids of their
/// cgroups.
pub const POD_FAMILIES: &str = "mp_pod_family";
/// The ids of the pods' cgroup and of the QoS classes' below it. An id is 0 if the cgroup does not exist.
pub const PODS: &str = "mp_pods";
/// The [`Stamp`](crate::layout::Stamp) of a socket that was redirected.
pub const STAMPS: &str = "mp_stamps";
/// The [`Arrival`](crate::layout::Arrival) of a listener, and of each connection accepted from it.
pub const ARRIVALS: &str = "mp_arrivals";
/// The addresses of the agent's listeners; the value has no meaning.
pub const LISTENERS: &str = "mp_listeners";
/// The [`Key`](crate::siphash::Key) of the tags, one element. The agent's own descriptor cannot read it.
pub const KEY: &str = "mp_key";
/// The number of failed handshakes, by [`FailureKey`](crate::layout::FailureKey).
pub const FAILURES: &str = "mp_failures";
/// The time at which the next connection of a pod is due at the sustained rate, in nanoseconds since boot, by cgroup
/// id.
pub const RATES: &str = "mp_rates";
/// The per-CPU [`Counter`](crate::layout::Counter)s.
pub const COUNTERS: &str = "mp_counters";

/// The number of connections that were only observed, by cgroup id.
pub const OBSERVED: &str = "mp_observed";

/// The guard's program for `connect()` of an IPv4 socket.
pub const GUARD4: &str = "mp_guard4";
/// The guard's program for `connect()` of an IPv6 socket.
pub const GUARD6: &str = "mp_guard6";
/// The guard's program at the egress of an uplink with Ethernet headers. It needs `bpf_get_netns_cookie` (Linux
/// 6.15).
pub const UPLINK_ETH: &str = "mp_uplink_eth";
/// The guard's program at the egress of an uplink whose packets begin with the IP header. It needs the same helper.
pub const UPLINK_IP: &str = "mp_uplink_ip";
/// The variant of [`UPLINK_ETH`] for the helpers of Linux 6.6.
pub const UPLINK_ETH_66: &str = "mp_uplink_eth66";
/// The variant of [`UPLINK_IP`] for the helpers of Linux 6.6.
pub const UPLINK_IP_66: &str = "mp_uplink_ip66";
/// The guard's program at the egress of the pods' sockets.
pub const GUARD_SKB: &str = "mp_guard_skb";

/// The [`GuardConfig`](crate::layout::GuardConfig), one element.
pub const GUARD: &str = "mp_guard";
/// The mark of the guard's socket in the node's network namespace.
pub const GUARD_MARK: &str = "mp_guard_mark";
/// The per-CPU [`GuardCounter`](crate::layout::GuardCounter)s.
pub const GUARD_COUNT: &str = "mp_guard_count";

/// All programs of the guard.
pub const GUARD_PROGRAMS: [&str; 7] = [
    GUARD4,
    GUARD6,
    UPLINK_ETH,
    UPLINK_IP,
    UPLINK_ETH_66,
    UPLINK_IP_66,
    GUARD_SKB,
];
/// All maps of the guard.
pub const GUARD_MAPS: [&str; 3] = [GUARD, GUARD_MARK, GUARD_COUNT];

/// All programs of the agent, in no particular order.
pub const PROGRAMS: [&str; 6] = [
    CONNECT4,
    CONNECT6,
    SOCK_OPS,
    LISTENER_OPS,
    GETPEERNAME4,
    GETPEERNAME6,
];
/// All maps of the agent's programs in a build without aya-log, which adds one.
pub const MAPS: [&str; 13] = [
    CONFIG,
    DESTINATIONS,
    HOST_PODS,
    POD_FAMILIES,
    PODS,
    STAMPS,
    ARRIVALS,
    LISTENERS,
    KEY,
    FAILURES,
    RATES,
    COUNTERS,
    OBSERVED,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_recognisable_and_fits_the_kernel() {
        let guard = GUARD_PROGRAMS.iter().chain(&GUARD_MAPS);
        for name in PROGRAMS.iter().chain(&MAPS).chain(guard) {
            assert!(name.starts_with(PREFIX), "{name}");
            // BPF_OBJ_NAME_LEN is 16, the terminating zero included (include/uapi/linux/bpf.h).
            assert!(name.len() <= 15, "{name}");
        }
    }
}
