//! The layout of keys and values in the maps. All are `repr(C)` without implicit padding, because keys are compared
//! byte by byte, and the agent and the programs are compiled for different targets.

use crate::address::{Endpoint, Port};
use crate::handshake::Proof;
use crate::rate::RateLimit;
use crate::target::Targets;
use crate::verdict::Family;

/// The maximum number of counted pairs of cgroup and kind of handshake failure. The agent removes the pairs of
/// cgroups that no longer exist. Failures beyond this number are counted in the total only.
pub const MAX_FAILURES: usize = 4_096;

/// The maximum number of listeners that one agent has at the same time.
pub const MAX_LISTENERS: usize = 64;

/// The number of elements of `mp_pods`: the pods' cgroup, and those of the two QoS classes that have one.
pub const NUM_PODS_CGROUPS: usize = 3;

/// The maximum number of pods whose rate of connections is kept, which is more than a node has. The pods that
/// connected longest ago are dropped first. A dropped pod starts again without a history.
pub const MAX_RATES: usize = 4_096;

/// The maximum number of pods that are listed for interception in the node's network namespace, which is more than a
/// node has.
pub const MAX_HOST_PODS: usize = 4_096;

/// The maximum number of cgroups that are noted between two reads of an agent that only observes connections.
pub const MAX_OBSERVED: usize = 4_096;

/// The maximum number of network namespaces that have a destination of their own.
pub const MAX_DESTINATIONS: usize = 1_024;

/// The maximum number of pods whose address family differs from that of the others.
pub const MAX_POD_FAMILIES: usize = 1_024;

/// A family of which pods certainly have an address. It is an integer with named values and not an enum, because a
/// map may hold any integer.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodFamily(pub u32);

impl PodFamily {
    /// IPv4. Every value but [`Self::V6`] counts as this one.
    pub const V4: Self = Self(4);
    /// IPv6.
    pub const V6: Self = Self(6);

    /// Converts a family for a map.
    pub const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// Converts the value of a map to a family.
    #[inline(always)]
    pub const fn family(self) -> Family {
        if self.0 == Self::V6.0 {
            Family::V6
        } else {
            Family::V4
        }
    }
}

/// The listeners to which intercepted connections are sent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The IPv4 listener, or [`Endpoint::NONE`].
    pub v4: Endpoint,
    /// The IPv6 listener, or [`Endpoint::NONE`].
    pub v6: Endpoint,
}

impl Destination {
    /// No listener: every connection to the metadata service is refused.
    pub const NONE: Self = Self {
        v4: Endpoint::NONE,
        v6: Endpoint::NONE,
    };

    /// Reports whether `to` is one of the listeners.
    #[inline(always)]
    pub const fn is(&self, to: &Endpoint) -> bool {
        (self.v4.exists() && self.v4.same(to)) || (self.v6.exists() && self.v6.same(to))
    }
}

/// The configuration of the programs, which is the only element of the map `mp_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The netns cookie of the node's own network namespace. It is 0 if the kernel cannot report it to userspace
    /// (before Linux 5.14) and the agent runs in the initial namespace.
    pub node_netns: u64,
    /// The intercepted addresses.
    pub targets: Targets,
    /// The number of network namespaces that have a destination of their own in `mp_dests`.
    pub override_count: u32,
    /// If it is not 0, nothing is redirected, and callers are noted in `mp_observed`.
    pub observe: u32,
    /// The destination for all other network namespaces.
    pub destination: Destination,
    /// The family of all pods that `mp_pod_family` does not name.
    pub pod_family: PodFamily,
    /// Always zero.
    pub pad: u32,
    /// The limit on the rate of one pod's connections to the listener.
    pub rate: RateLimit,
}

impl Config {
    /// Makes a configuration that intercepts both addresses of the metadata service.
    pub const fn imds(node_netns: u64, destination: Destination, rate: RateLimit) -> Self {
        Self {
            node_netns,
            targets: Targets::IMDS,
            override_count: 0,
            observe: 0,
            destination,
            pod_family: PodFamily::V4,
            pad: 0,
            rate,
        }
    }

    /// Makes a configuration that only notes connections to the metadata service.
    pub const fn observing(node_netns: u64) -> Self {
        Self {
            observe: 1,
            ..Self::imds(node_netns, Destination::NONE, RateLimit::NONE)
        }
    }
}

/// The configuration of a guard, which is the only element of the map `mp_guard`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GuardConfig {
    /// The same as in [`Config`].
    pub node_netns: u64,
    /// The guarded addresses.
    pub targets: Targets,
    /// The port (network byte order) of the UDP socket on 127.0.0.1 in the node's network namespace that carries a
    /// mark in `mp_guard_mark`. Programs that have no helper for the namespace of a packet recognize the node's by
    /// this socket.
    pub marker: Port,
    /// Always zero.
    pub pad: [u16; 3],
}

impl GuardConfig {
    /// Makes a configuration that guards both addresses of the metadata service.
    pub const fn imds(node_netns: u64, marker: Port) -> Self {
        Self {
            node_netns,
            targets: Targets::IMDS,
            marker,
            pad: [0; 3],
        }
    }
}

/// The caller of `connect()`, in the kernel's own terms.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The cgroup v2 id (the directory's inode number) of the task.
    pub cgroup_id: u64,
    /// The cookie of the socket's network namespace.
    pub netns_cookie: u64,
}

/// The value that the socket of a redirected client carries from `connect()` on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The caller.
    pub origin: Origin,
    /// The address that the client asked for, which `getpeername()` returns to the client.
    pub asked: Endpoint,
    /// The listener to which the connection goes.
    pub listener: Endpoint,
    /// The client's initial sequence number, from [`ClientState::ESTABLISHED`] on.
    pub client_isn: u32,
    /// The listener's initial sequence number, from [`ClientState::ESTABLISHED`] on.
    pub listener_isn: u32,
    /// The state of the connection.
    pub state: ClientState,
    /// Not 0 if a failure to write the option was counted for this connection.
    pub is_failure_counted: u32,
}

/// The state of a stamped socket's connection. It is an integer for the reason given at [`PodFamily`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientState(pub u32);

impl ClientState {
    /// The stamp is void: the socket was connected to another address since, or another program than the listener
    /// answered.
    pub const NONE: Self = Self(0);
    /// The SYN goes to the listener.
    pub const CONNECTING: Self = Self(1);
    /// The handshake is complete for the client, whose packets carry the option.
    pub const ESTABLISHED: Self = Self(2);
    /// The listener has acknowledged data, so the option was verified before.
    pub const DELIVERED: Self = Self(3);
    /// `connect()` was called, and nothing has been sent yet.
    pub const CALLED: Self = Self(4);
}

/// The value that a listener's socket carries, and the socket of each connection that is accepted from it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The cgroup id in the option, which `state` may or may not prove.
    pub cgroup_id: u64,
    /// The result of verifying the option.
    pub state: ArrivalState,
    /// Not 0 if the listener had `BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG` before the program set it. Its connections keep
    /// the flag then.
    pub keeps_flag: u32,
}

impl Arrival {
    /// The mark of a listener.
    pub const LISTENER: Self = Self {
        cgroup_id: 0,
        state: ArrivalState::UNSEEN,
        keeps_flag: 0,
    };
}

/// The result of verifying an accepted connection's option. It is an integer for the reason given at [`PodFamily`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivalState(pub u32);

impl ArrivalState {
    /// The socket is a listener that the program has not seen (yet).
    pub const UNSEEN: Self = Self(0);
    /// The packet that completed the handshake had no option.
    pub const NO_OPTION: Self = Self(1);
    /// The packet that completed the handshake had an option that proves nothing.
    pub const BAD_TAG: Self = Self(2);
    /// The option proves the caller.
    pub const PROVEN: Self = Self(3);
    /// The option proves the caller, whose address was changed on the way.
    pub const PROVEN_BEHIND_NAT: Self = Self(4);
    /// The socket is a listener that the program has seen, or a connection from it that the program has not seen.
    pub const LISTENING: Self = Self(5);

    /// Returns the state for a proof.
    #[inline(always)]
    pub const fn of(proof: Proof) -> Self {
        if proof.0 == Proof::CALLER.0 {
            Self::PROVEN
        } else if proof.0 == Proof::CALLER_BEHIND_NAT.0 {
            Self::PROVEN_BEHIND_NAT
        } else {
            Self::BAD_TAG
        }
    }
}

/// The key by which the client's programs count failed handshakes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FailureKey {
    /// The cgroup id of the caller.
    pub cgroup_id: u64,
    /// The index of the kind in [`HandshakeFailure::ALL`].
    pub kind: u32,
    /// Always zero, because map keys are compared byte by byte.
    pub pad: u32,
}

macro_rules! counters {
    ($(#[doc = $about:literal])+ $counter:ident: $($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        $(#[doc = $about])+
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter { $($(#[doc = $doc])+ $name,)+ }

        impl $counter {
            /// All values, by index.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the name in metrics and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }
        }
    };
}

counters! {
    /// The counters of the programs, per CPU. The discriminant is the index into `mp_counters`.
    Counter:
    /// Connections to a metadata address that were sent to a listener.
    Redirected = "redirected",
    /// Connections that dialled a listener directly and were given their identity.
    Stamped = "stamped",
    /// Connections to a metadata address that could not be served and were sent to the sentinel.
    Refused = "refused",
    /// Connections to a metadata address that were left alone, because they come from the node's own network
    /// namespace.
    NodeLeftAlone = "node_left_alone",
    /// Connections whose option proved their caller.
    Proven = "proven",
    /// Connections whose option proved a caller whose address was changed on the way.
    ProvenBehindNat = "proven_behind_nat",
    /// Connections to a listener that carried no option.
    NoOption = "no_option",
    /// Connections to a listener whose option proved nothing.
    BadTag = "bad_tag",
    /// Connections that failed by a [`HandshakeFailure`].
    Failures = "handshake_failures",
    /// Connections to a metadata address that were only noted, because nothing is redirected.
    Observed = "observed",
}

counters! {
    /// The reasons why a redirected connection did not reach the agent with its caller's option, as the client's
    /// programs see them.
    HandshakeFailure:
    /// The caller's cgroup id has more than 40 bits; the connection was refused.
    IdTooLarge = "id_too_large",
    /// The packet had no room for the option beside those of the kernel and of other programs.
    NoRoom = "no_room",
    /// The kernel or another program prevented that the option was written.
    NotWritten = "not_written",
    /// The pod connects faster than it may; the connection was refused.
    TooFast = "too_fast",
    /// Another program than the listener has answered, or the connection was sent to another address before its first
    /// packet.
    AnsweredElsewhere = "answered_elsewhere",
}

/// The number of [`Counter`]s.
pub const NUM_COUNTERS: usize = Counter::ALL.len();

counters! {
    /// The counters of a guard's programs, per CPU. The discriminant is the index into `mp_guard_count`.
    GuardCounter:
    /// Packets to a metadata address that were dropped.
    Packets = "packets",
}

/// The number of [`GuardCounter`]s.
pub const NUM_GUARD_COUNTERS: usize = GuardCounter::ALL.len();

#[cfg(feature = "user")]
mod pod {
    use super::{Arrival, Config, Destination, Endpoint, FailureKey, GuardConfig, PodFamily};
    use crate::siphash::Key;

    // SAFETY: it is `repr(C)` or `repr(transparent)`, `Copy`, holds only integers and has no padding (this module's
    // tests assert the sizes).
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GuardConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Arrival {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FailureKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Key {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PodFamily {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::siphash::Key;
    use crate::target::{MAX_TARGETS, Target};
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_padding_and_keep_their_size() {
        assert_eq!(size_of::<Endpoint>(), 20);
        assert_eq!(size_of::<Target>(), 40);
        assert_eq!(size_of::<Origin>(), 16);
        assert_eq!(size_of::<Stamp>(), 16 + 20 + 20 + 4 * 4);
        assert_eq!(size_of::<Arrival>(), 8 + 4 + 4);
        assert_eq!(size_of::<FailureKey>(), 8 + 4 + 4);
        assert_eq!(size_of::<Key>(), 16);
        assert_eq!(size_of::<PodFamily>(), 4);
        assert_eq!(size_of::<Targets>(), MAX_TARGETS * 40 + 4 + 4);
        assert_eq!(
            size_of::<Config>(),
            8 + size_of::<Targets>() + 4 + 4 + 40 + 4 + 4 + 16
        );
        assert_eq!(size_of::<GuardConfig>(), 8 + size_of::<Targets>() + 2 + 6);
    }

    #[test]
    fn counters_index_themselves() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
        for (index, kind) in HandshakeFailure::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
        for (index, counter) in GuardCounter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
