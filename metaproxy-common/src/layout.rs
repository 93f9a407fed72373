//! What stands in the maps. `repr(C)` with no implicit padding: keys are compared byte by byte, and the agent and
//! the programs are compiled by different compilers.

use crate::address::{Endpoint, Port};
use crate::handshake::Proof;
use crate::rate::RateLimit;
use crate::target::Targets;
use crate::verdict::Family;

/// Most kinds of handshake failures, times cgroups, that are counted by cgroup between two looks; what goes beyond is
/// counted in total only.
pub const MAX_FAILURES: usize = 4_096;

/// Most listeners of one agent, at the same time.
pub const MAX_LISTENERS: usize = 64;

/// Elements of `mp_pods`: the pods' cgroup, and those of the two QoS classes that have one.
pub const NUM_PODS_CGROUPS: usize = 3;

/// Most pods whose rate of connections is kept: more than a node has.
/// Those that connected longest ago go first, and start anew.
pub const MAX_RATES: usize = 4_096;

/// Most pods of one node that are intercepted in its network namespace too: more than a node has.
pub const MAX_HOST_PODS: usize = 4_096;

/// Most cgroups whose connections are noted between two looks, where they are only observed.
pub const MAX_OBSERVED: usize = 4_096;

/// Most network namespaces with a destination of their own.
pub const MAX_DESTINATIONS: usize = 1_024;

/// Most pods whose family is not that of the other pods.
pub const MAX_POD_FAMILIES: usize = 1_024;

/// Of which family pods surely have an address. An integer with names and no enum: it stands in maps.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodFamily(pub u32);

impl PodFamily {
    /// IPv4; so is every other value.
    pub const V4: Self = Self(4);
    /// IPv6.
    pub const V6: Self = Self(6);

    /// As a map has it.
    pub const fn of(family: Family) -> Self {
        match family {
            Family::V4 => Self::V4,
            Family::V6 => Self::V6,
        }
    }

    /// As a decision has it.
    #[inline(always)]
    pub const fn family(self) -> Family {
        if self.0 == Self::V6.0 {
            Family::V6
        } else {
            Family::V4
        }
    }
}

/// Where intercepted connections go. At least one of the two exists.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The IPv4 listener, or [`Endpoint::NONE`].
    pub v4: Endpoint,
    /// The IPv6 listener, or [`Endpoint::NONE`].
    pub v6: Endpoint,
}

impl Destination {
    /// Neither listener: every metadata connection is refused.
    pub const NONE: Self = Self {
        v4: Endpoint::NONE,
        v6: Endpoint::NONE,
    };

    /// Whether `to` is one of the listeners.
    #[inline(always)]
    pub const fn is(&self, to: &Endpoint) -> bool {
        (self.v4.exists() && self.v4.same(to)) || (self.v6.exists() && self.v6.same(to))
    }
}

/// The configuration of the programs: the only element of the map `mp_config`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// The netns cookie of the node's own network namespace, or 0 where the kernel can't tell it to userspace
    /// (before 5.14) and the agent runs in the initial one.
    pub node_netns: u64,
    /// What is intercepted.
    pub targets: Targets,
    /// How many network namespaces have a destination of their own in `mp_dests`.
    pub override_count: u32,
    /// Not 0: nothing is redirected; who would have been is noted in `mp_observed`.
    pub observe: u32,
    /// For every other network namespace.
    pub destination: Destination,
    /// Of which family all pods have an address that `mp_pod_family` does not name.
    pub pod_family: PodFamily,
    /// Always zero.
    pub pad: u32,
    /// How fast one pod may connect to the listener.
    pub rate: RateLimit,
}

impl Config {
    /// Intercepts both addresses of the metadata service.
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

    /// Only notes who connects to the metadata service.
    pub const fn observing(node_netns: u64) -> Self {
        Self {
            observe: 1,
            ..Self::imds(node_netns, Destination::NONE, RateLimit::NONE)
        }
    }
}

/// The configuration of a guard: the only element of the map `mp_guard`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GuardConfig {
    /// As in [`Config`].
    pub node_netns: u64,
    /// What is guarded.
    pub targets: Targets,
    /// Port (network byte order) of the UDP socket on 127.0.0.1 in the node's network namespace that carries a mark in
    /// `mp_guard_mark`; by it the node's namespace is told where no helper tells it.
    pub marker: Port,
    /// Always zero.
    pub pad: [u16; 3],
}

impl GuardConfig {
    /// Guards both addresses of the metadata service.
    pub const fn imds(node_netns: u64, marker: Port) -> Self {
        Self {
            node_netns,
            targets: Targets::IMDS,
            marker,
            pad: [0; 3],
        }
    }
}

/// Who called `connect()`, in the kernel's own terms.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Cgroup v2 id (the directory's inode number) of the task that called.
    pub cgroup_id: u64,
    /// Cookie of the network namespace of its socket.
    pub netns_cookie: u64,
}

/// What the socket of a redirected client carries from `connect()` on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Who called.
    pub origin: Origin,
    /// The address that the program asked for: what `getpeername()` shows it.
    pub asked: Endpoint,
    /// The listener that it got.
    pub listener: Endpoint,
    /// The client's initial sequence number; from [`ClientState::ESTABLISHED`] on.
    pub client_isn: u32,
    /// The listener's initial sequence number, likewise.
    pub listener_isn: u32,
    /// How far its connection is.
    pub state: ClientState,
    /// Not 0: a failure to write the option was counted for this connection.
    pub is_failure_counted: u32,
}

/// How far the connection of a stamped socket is. An integer with names and no enum: it stands in a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientState(pub u32);

impl ClientState {
    /// The socket was connected elsewhere since, or what answered is not the listener: the stamp means nothing.
    pub const NONE: Self = Self(0);
    /// The SYN goes to the listener.
    pub const CONNECTING: Self = Self(1);
    /// The handshake is complete for the client, whose packets carry the option.
    pub const ESTABLISHED: Self = Self(2);
    /// The listener has acknowledged data, so it has verified the option before.
    pub const DELIVERED: Self = Self(3);
    /// `connect()` was called, and nothing has been sent yet.
    pub const CALLED: Self = Self(4);
}

/// What a listener's socket carries, and each connection that is accepted from it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// The cgroup id that its option proves, or only claims.
    pub cgroup_id: u64,
    /// What came of verifying it.
    pub state: ArrivalState,
    /// Not 0: the listener had `BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG` before we set it, so its connections keep it.
    pub keeps_flag: u32,
}

impl Arrival {
    /// What a listener is marked with.
    pub const LISTENER: Self = Self {
        cgroup_id: 0,
        state: ArrivalState::UNSEEN,
        keeps_flag: 0,
    };
}

/// What came of verifying an accepted connection's option. An integer with names and no enum: it stands in a map.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArrivalState(pub u32);

impl ArrivalState {
    /// A listener that the program has not seen (yet).
    pub const UNSEEN: Self = Self(0);
    /// The packet that completed the handshake had no option of ours.
    pub const NO_OPTION: Self = Self(1);
    /// It had one that proves nothing.
    pub const BAD_TAG: Self = Self(2);
    /// It had one that proves the caller.
    pub const PROVEN: Self = Self(3);
    /// It had one that proves a caller whose address was changed on the way.
    pub const PROVEN_BEHIND_NAT: Self = Self(4);
    /// A listener that the program has seen; or a connection from it that it has not.
    pub const LISTENING: Self = Self(5);

    /// The state that a proof leads to.
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

/// A failure of a handshake that the client's programs have seen, by the cgroup of its caller.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FailureKey {
    /// Cgroup id of the caller.
    pub cgroup_id: u64,
    /// Index of the kind in [`HandshakeFailure::ALL`].
    pub kind: u32,
    /// Always zero: map keys are compared byte by byte.
    pub pad: u32,
}

macro_rules! counters {
    ($(#[doc = $about:literal])+ $counter:ident: $($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        $(#[doc = $about])+
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $counter { $($(#[doc = $doc])+ $name,)+ }

        impl $counter {
            /// All of them, by index.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Its name in metrics and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),+ }
            }
        }
    };
}

counters! {
    /// What the programs count, per CPU; the discriminant is the index into `mp_counters`.
    Counter:
    /// Connections to a metadata address that were sent to a listener.
    Redirected = "redirected",
    /// Connections that dialled a listener directly and were given their identity.
    Stamped = "stamped",
    /// Connections to a metadata address that could not be served and were sent to the sentinel.
    Refused = "refused",
    /// Connections to a metadata address left alone, as they come from the node's own network namespace.
    NodeLeftAlone = "node_left_alone",
    /// Connections whose option proved their caller.
    Proven = "proven",
    /// Connections whose option proved a caller whose address was changed on the way.
    ProvenBehindNat = "proven_behind_nat",
    /// Connections to a listener that carried no option.
    NoOption = "no_option",
    /// Connections to a listener whose option proved nothing.
    BadTag = "bad_tag",
    /// Connections whose caller's option could not be written, or that another program answered; see
    /// [`HandshakeFailure`].
    Failures = "handshake_failures",
    /// Connections to a metadata address that were only noted, as nothing is redirected.
    Observed = "observed",
}

counters! {
    /// Why a redirected connection did not reach the agent with its caller's option, as the client's programs see it.
    HandshakeFailure:
    /// The caller's cgroup id has more than 40 bits; the connection was refused.
    IdTooLarge = "id_too_large",
    /// The packet had no room for the option beside those of the kernel and of other programs.
    NoRoom = "no_room",
    /// The kernel, or another program, kept ours from writing the option.
    NotWritten = "not_written",
    /// The pod connects faster than it may; the connection was refused.
    TooFast = "too_fast",
    /// Another program than the listener has answered, or the connection was sent elsewhere before it left.
    AnsweredElsewhere = "answered_elsewhere",
}

/// How many counters there are.
pub const NUM_COUNTERS: usize = Counter::ALL.len();

counters! {
    /// What a guard's programs count, per CPU; the discriminant is the index into `mp_guard_count`.
    GuardCounter:
    /// Packets to a metadata address that were dropped.
    Packets = "packets",
}

/// How many counters a guard has.
pub const NUM_GUARD_COUNTERS: usize = GuardCounter::ALL.len();

#[cfg(feature = "user")]
mod pod {
    use super::{Arrival, Config, Destination, Endpoint, FailureKey, GuardConfig, PodFamily};
    use crate::siphash::Key;

    // SAFETY: all are `repr(C)`, `Copy`, hold only integers and have no padding (asserted in this module's tests).
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
