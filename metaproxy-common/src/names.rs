//! Names of our programs and maps, as `bpftool` shows them. All begin with [`PREFIX`] and fit the kernel's
//! limit of 15 bytes, so whoever looks for leftovers can tell what is ours.

/// What every name of ours begins with.
pub const PREFIX: &str = "mp_";

/// `connect()` of an IPv4 socket.
pub const CONNECT4: &str = "mp_connect4";
/// `connect()` of an IPv6 socket, IPv4-mapped addresses included.
pub const CONNECT6: &str = "mp_connect6";
/// Connection events of pods' sockets: writes the caller's option.
pub const SOCK_OPS: &str = "mp_sock_ops";
/// Connection events of the agent's sockets: verifies the caller's option.
pub const LISTENER_OPS: &str = "mp_listener_ops";
/// `getpeername()` of an IPv4 socket.
pub const GETPEERNAME4: &str = "mp_getpeername4";
/// `getpeername()` of an IPv6 socket.
pub const GETPEERNAME6: &str = "mp_getpeername6";

/// [`Config`](crate::layout::Config), one element.
pub const CONFIG: &str = "mp_config";
/// Destinations of single network namespaces, by netns cookie.
pub const DESTINATIONS: &str = "mp_dests";
/// Cgroup ids of the pods that are intercepted in the node's network namespace too: hostNetwork pods that have a role, and
/// all pods with a network of their own.
pub const HOST_PODS: &str = "mp_host_pods";
/// [`PodFamily`](crate::layout::PodFamily) of pods that differ from the others in it, by the ids of their cgroups.
pub const POD_FAMILIES: &str = "mp_pod_family";
/// Cgroup ids of the pods' cgroup and of the QoS classes' below it; each 0 if it is not there.
pub const PODS: &str = "mp_pods";
/// [`Stamp`](crate::layout::Stamp) of a socket that was redirected.
pub const STAMPS: &str = "mp_stamps";
/// [`Arrival`](crate::layout::Arrival) of a listener, and of each connection accepted from it.
pub const ARRIVALS: &str = "mp_arrivals";
/// Addresses of the agent's listeners; the value says nothing.
pub const LISTENERS: &str = "mp_listeners";
/// The [`Key`](crate::siphash::Key) of the tags, one element. The agent's own descriptor can't read it.
pub const KEY: &str = "mp_key";
/// Handshake failures: [`FailureKey`](crate::layout::FailureKey) → connections.
pub const FAILURES: &str = "mp_failures";
/// When the next connection of a pod is due at the sustained rate: cgroup id → nanoseconds since boot.
pub const RATES: &str = "mp_rates";
/// Per-CPU [`Counter`](crate::layout::Counter)s.
pub const COUNTERS: &str = "mp_counters";

/// Who was observed: cgroup id → connections.
pub const OBSERVED: &str = "mp_observed";

/// The guard's own `connect()` of an IPv4 socket.
pub const GUARD4: &str = "mp_guard4";
/// The guard's own `connect()` of an IPv6 socket.
pub const GUARD6: &str = "mp_guard6";
/// The guard at the egress of an uplink with Ethernet headers; needs `bpf_get_netns_cookie` (Linux 6.15).
pub const UPLINK_ETH: &str = "mp_uplink_eth";
/// Likewise where packets begin with the IP header.
pub const UPLINK_IP: &str = "mp_uplink_ip";
/// [`UPLINK_ETH`] with what Linux 6.6 has.
pub const UPLINK_ETH_66: &str = "mp_uplink_eth66";
/// [`UPLINK_IP`] with what Linux 6.6 has.
pub const UPLINK_IP_66: &str = "mp_uplink_ip66";
/// The guard at the egress of the pods' sockets.
pub const GUARD_SKB: &str = "mp_guard_skb";

/// [`GuardConfig`](crate::layout::GuardConfig), one element.
pub const GUARD: &str = "mp_guard";
/// The mark of the guard's socket in the node's network namespace.
pub const GUARD_MARK: &str = "mp_guard_mark";
/// Per-CPU [`GuardCounter`](crate::layout::GuardCounter)s.
pub const GUARD_COUNT: &str = "mp_guard_count";

/// Every program of the guard.
pub const GUARD_PROGRAMS: [&str; 7] = [
    GUARD4,
    GUARD6,
    UPLINK_ETH,
    UPLINK_IP,
    UPLINK_ETH_66,
    UPLINK_IP_66,
    GUARD_SKB,
];
/// Every map of the guard.
pub const GUARD_MAPS: [&str; 3] = [GUARD, GUARD_MARK, GUARD_COUNT];

/// Every program of the redirection, in no particular order.
pub const PROGRAMS: [&str; 6] = [
    CONNECT4,
    CONNECT6,
    SOCK_OPS,
    LISTENER_OPS,
    GETPEERNAME4,
    GETPEERNAME6,
];
/// Every map of the plain build (aya-log adds one).
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
