//! What stands in the maps. `repr(C)` with no implicit padding: keys are compared byte by byte, and the agent and
//! the programs are compiled by different compilers.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::address::{Address, Endpoint, Port};

/// How many targets the table holds.
pub const MAX_TARGETS: usize = 4;

/// Most connections that may wait to be accepted at one time, over all pods of the node.
pub const MAX_FLOWS: usize = 65_536;

/// Most hostNetwork pods of one node that may be listed.
pub const MAX_HOST_PODS: usize = 1_024;

/// Most cgroups whose connections are noted between two looks, where they are only observed.
pub const MAX_OBSERVED: usize = 4_096;

/// Most network namespaces with a destination of their own.
pub const MAX_DESTINATIONS: usize = 1_024;

/// An address that is intercepted, and its sentinel.
///
/// A guard rewrites `address` to `sentinel`, an address at which TCP `connect()` fails at once and never leaves the
/// host; whoever redirects accepts either. So any number of guards and agents work in any order, and the pair is a
/// contract between versions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// What pods dial.
    pub address: Endpoint,
    /// What a guard turns it into. Same port.
    pub sentinel: Endpoint,
}

impl Target {
    const NONE: Self = Self {
        address: Endpoint::NONE,
        sentinel: Endpoint::NONE,
    };

    /// The IPv4 address of the instance metadata service, also as `::ffff:169.254.169.254`.
    pub const IMDS_V4: Self = Self::at(
        Address::from_v4(Ipv4Addr::new(169, 254, 169, 254)),
        Address::from_v4(Ipv4Addr::BROADCAST),
    );

    /// The IPv6 address of the instance metadata service (Nitro instances), `fd00:ec2::254`.
    /// Its sentinel is multicast, which TCP refuses to connect to.
    pub const IMDS_V6: Self = Self::at(
        Address::from_v6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
        Address::from_v6(Ipv6Addr::new(0xff00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    );

    /// The metadata service answers on this port only.
    pub const IMDS_PORT: u16 = 80;

    const fn at(address: Address, sentinel: Address) -> Self {
        let port = Port::new(Self::IMDS_PORT);
        Self {
            address: Endpoint::new(address, port),
            sentinel: Endpoint::new(sentinel, port),
        }
    }
}

/// The target table: what is intercepted, and what is guarded.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The first `count` are in use.
    pub rows: [Target; MAX_TARGETS],
    /// How many are in use.
    pub count: u32,
    /// Always zero.
    pub pad: u32,
}

/// What [`Targets::find`] found. A plain struct: the payload of an enum is uninitialised in its other variants, and
/// where the compiler spills such bytes the verifier refuses the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whether there is such a target.
    pub hit: bool,
    /// Its address, where there is one.
    pub address: Endpoint,
    /// Its sentinel, where there is one.
    pub sentinel: Endpoint,
}

impl Targets {
    /// Both addresses of the instance metadata service.
    pub const IMDS: Self = Self {
        rows: [Target::IMDS_V4, Target::IMDS_V6, Target::NONE, Target::NONE],
        count: 2,
        pad: 0,
    };

    /// The target whose address, or whose sentinel, this is.
    #[inline(always)]
    pub fn find(&self, to: &Endpoint) -> Found {
        let mut row = 0;
        while row < MAX_TARGETS {
            if row as u32 >= self.count {
                break;
            }
            let target = &self.rows[row];
            if target.address.same(to) || target.sentinel.same(to) {
                return Found {
                    hit: true,
                    address: target.address,
                    sentinel: target.sentinel,
                };
            }
            row += 1;
        }
        Found {
            hit: false,
            address: Endpoint::NONE,
            sentinel: Endpoint::NONE,
        }
    }

    /// Whether a target has this address, at whatever port.
    #[inline(always)]
    pub fn has_address(&self, address: &Address) -> bool {
        let mut row = 0;
        while row < MAX_TARGETS {
            if row as u32 >= self.count {
                break;
            }
            if self.rows[row].address.address.same(address) {
                return true;
            }
            row += 1;
        }
        false
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
    use core::mem::size_of;
    use std::net::IpAddr;

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

    #[test]
    fn the_addresses_and_sentinels_are_those_that_every_version_knows() {
        let config = Config::imds(1, Destination::NONE);
        let shown: std::vec::Vec<_> = config.targets.rows[..config.targets.count as usize]
            .iter()
            .map(|t| (std::format!("{:?}", t.address), std::format!("{:?}", t.sentinel)))
            .collect();
        let want = [
            ("169.254.169.254:80", "255.255.255.255:80"),
            ("[fd00:ec2::254]:80", "[ff00:ec2::254]:80"),
        ];
        assert_eq!(shown.len(), want.len());
        for ((address, sentinel), (want_address, want_sentinel)) in shown.iter().zip(want) {
            assert_eq!(
                (address.as_str(), sentinel.as_str()),
                (want_address, want_sentinel)
            );
        }
        let IpAddr::V6(sentinel) = Target::IMDS_V6.sentinel.address.ip() else {
            panic!("not IPv6")
        };
        assert!(sentinel.is_multicast());
    }
}
