//! Names of our programs and maps, as `bpftool` shows them. All begin with [`PREFIX`] and fit the kernel's
//! limit of 15 bytes, so whoever looks for leftovers can tell what is ours.

/// What every name of ours begins with.
pub const PREFIX: &str = "mp_";

/// `connect()` of an IPv4 socket.
pub const CONNECT4: &str = "mp_connect4";
/// `connect()` of an IPv6 socket, IPv4-mapped addresses included.
pub const CONNECT6: &str = "mp_connect6";
/// Connection events: files the caller under the 4-tuple.
pub const SOCK_OPS: &str = "mp_sock_ops";
/// `getpeername()` of an IPv4 socket.
pub const GETPEERNAME4: &str = "mp_getpeername4";
/// `getpeername()` of an IPv6 socket.
pub const GETPEERNAME6: &str = "mp_getpeername6";

/// [`Config`](crate::layout::Config), one element.
pub const CONFIG: &str = "mp_config";
/// Destinations of single network namespaces, by netns cookie.
pub const DESTINATIONS: &str = "mp_dests";
/// Cgroup ids of hostNetwork pods that are to be intercepted.
pub const HOST_PODS: &str = "mp_host_pods";
/// [`Stamp`](crate::layout::Stamp) of a socket that was redirected.
pub const STAMPS: &str = "mp_stamps";
/// [`Flow`](crate::layout::Flow) of a connection on its way to a listener.
pub const FLOWS: &str = "mp_flows";
/// Per-CPU [`Counter`](crate::layout::Counter)s.
pub const COUNTERS: &str = "mp_counters";

/// Every program, in no particular order.
pub const PROGRAMS: [&str; 5] = [CONNECT4, CONNECT6, SOCK_OPS, GETPEERNAME4, GETPEERNAME6];
/// Every map of the plain build (aya-log adds one).
pub const MAPS: [&str; 6] = [CONFIG, DESTINATIONS, HOST_PODS, STAMPS, FLOWS, COUNTERS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_recognisable_and_fits_the_kernel() {
        for name in PROGRAMS.iter().chain(&MAPS) {
            assert!(name.starts_with(PREFIX), "{name}");
            // BPF_OBJ_NAME_LEN is 16, the terminating zero included (include/uapi/linux/bpf.h).
            assert!(name.len() <= 15, "{name}");
        }
    }
}
