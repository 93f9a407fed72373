//! What stands in the maps. `repr(C)` with no implicit padding: keys are compared byte by byte, and the agent and
//! the programs are compiled by different compilers.

use crate::address::{Endpoint, Port};
use crate::target::Targets;

/// Most connections that may wait to be accepted at one time, over all pods of the node.
pub const MAX_FLOWS: usize = 65_536;

/// Most hostNetwork pods of one node that may be listed.
pub const MAX_HOST_PODS: usize = 1_024;

/// Most cgroups whose connections are noted between two looks, where they are only observed.
pub const MAX_OBSERVED: usize = 4_096;

/// Most network namespaces with a destination of their own.
pub const MAX_DESTINATIONS: usize = 1_024;

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
}

impl Config {
    /// Intercepts both addresses of the metadata service.
    pub const fn imds(node_netns: u64, destination: Destination) -> Self {
        Self {
            node_netns,
            targets: Targets::IMDS,
            override_count: 0,
            observe: 0,
            destination,
        }
    }

    /// Only notes who connects to the metadata service.
    pub const fn observing(node_netns: u64) -> Self {
        Self {
            observe: 1,
            ..Self::imds(node_netns, Destination::NONE)
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
pub struct Caller {
    /// Cgroup v2 id (the directory's inode number) of the task that called.
    pub cgroup_id: u64,
    /// Cookie of the network namespace of its socket.
    pub netns_cookie: u64,
}

/// A connection as its client's kernel knows it, and as the listener sees it at accept: nothing in between
/// translates addresses on the way from a pod to its own node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// The client's address and port.
    pub client: Endpoint,
    /// The listener's address and port.
    pub listener: Endpoint,
}

/// The caller of an established connection that no listener has accepted yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who called.
    pub caller: Caller,
    /// Cookie of the socket that filed it; only that one's end removes it.
    pub owner: u64,
    /// Not 0: another socket claimed the same 4-tuple, so neither can be told from the other.
    pub conflicted: u64,
}

/// What a redirected socket carries from `connect()` on.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// Who called.
    pub caller: Caller,
    /// The address that the program asked for: what `getpeername()` shows it.
    pub asked: Endpoint,
    /// The listener that it got.
    pub listener: Endpoint,
    /// Its entry in `mp_flows`, if `filed` is not 0.
    pub flow: FlowKey,
    /// Whether `flow` was filed for this socket.
    pub filed: u32,
    /// Always zero.
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

            /// A name for people and metrics.
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
    /// Connections filed under their 4-tuple.
    Filed = "filed",
    /// Second claims of a 4-tuple.
    Conflicts = "conflicts",
    /// Connections that could not be filed, as the map was full or memory short. They are refused at accept.
    Unfiled = "unfiled",
    /// Filed connections whose socket closed before they were accepted.
    Abandoned = "abandoned",
    /// Connections to a metadata address that were only noted, as nothing is redirected.
    Observed = "observed",
}

/// How many counters there are.
pub const COUNTERS: usize = Counter::ALL.len();

counters! {
    /// What a guard's programs count, per CPU; the discriminant is the index into `mp_guard_count`.
    GuardCounter:
    /// Packets to a metadata address that were dropped.
    Packets = "packets",
}

/// How many counters a guard has.
pub const GUARD_COUNTERS: usize = GuardCounter::ALL.len();

#[cfg(feature = "user")]
mod pod {
    use super::{Caller, Config, Destination, Endpoint, Flow, FlowKey, GuardConfig};

    // SAFETY: all are `repr(C)`, `Copy`, hold only integers and have no padding (asserted in this module's tests).
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GuardConfig {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Destination {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Caller {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FlowKey {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::target::{MAX_TARGETS, Target};
    use core::mem::size_of;

    #[test]
    fn layouts_have_no_padding_and_keep_their_size() {
        assert_eq!(size_of::<Endpoint>(), 20);
        assert_eq!(size_of::<Target>(), 40);
        assert_eq!(size_of::<FlowKey>(), 40);
        assert_eq!(size_of::<Caller>(), 16);
        assert_eq!(size_of::<Flow>(), 16 + 8 + 8);
        assert_eq!(size_of::<Stamp>(), 16 + 20 + 20 + 40 + 4 + 4);
        assert_eq!(size_of::<Targets>(), MAX_TARGETS * 40 + 4 + 4);
        assert_eq!(size_of::<Config>(), 8 + size_of::<Targets>() + 4 + 4 + 40);
        assert_eq!(size_of::<GuardConfig>(), 8 + size_of::<Targets>() + 2 + 6);
    }

    #[test]
    fn counters_index_themselves() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
        for (index, counter) in GuardCounter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
