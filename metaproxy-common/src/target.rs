//! The addresses that are intercepted and guarded.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::address::{Address, Endpoint, Port};

/// The number of targets that the table holds.
pub const MAX_TARGETS: usize = 4;

/// An address that is intercepted, and its sentinel.
///
/// A guard rewrites `address` to `sentinel`, an address at which TCP `connect()` fails at once and never leaves the
/// host. Agents redirect connections to either. So any number of guards and agents work in any order, and the pair is
/// a contract between versions.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The address that pods dial.
    pub address: Endpoint,
    /// The address that a guard puts in its place, with the same port.
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

    /// The only port on which the metadata service answers.
    pub const IMDS_PORT: u16 = 80;

    const fn at(address: Address, sentinel: Address) -> Self {
        let port = Port::new(Self::IMDS_PORT);
        Self {
            address: Endpoint::new(address, port),
            sentinel: Endpoint::new(sentinel, port),
        }
    }
}

/// The table of targets.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// The rows, of which the first `count` are in use.
    pub rows: [Target; MAX_TARGETS],
    /// The number of rows in use.
    pub count: u32,
    /// Always zero.
    pub pad: u32,
}

/// The result of [`Targets::find`].
///
/// It is a plain struct, because the payload of an enum is uninitialised in its other variants: if the compiler
/// spills such bytes to the stack, the verifier refuses the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetMatch {
    /// Whether a target was found.
    pub hit: bool,
    /// The target's address, or [`Endpoint::NONE`].
    pub address: Endpoint,
    /// The target's sentinel, or [`Endpoint::NONE`].
    pub sentinel: Endpoint,
}

impl Targets {
    /// Both addresses of the instance metadata service.
    pub const IMDS: Self = Self {
        rows: [Target::IMDS_V4, Target::IMDS_V6, Target::NONE, Target::NONE],
        count: 2,
        pad: 0,
    };

    /// Finds the target whose address or sentinel this is.
    #[inline(always)]
    pub fn find(&self, to: &Endpoint) -> TargetMatch {
        let mut row = 0;
        while row < MAX_TARGETS {
            if row as u32 >= self.count {
                break;
            }
            let target = &self.rows[row];
            if target.address.same(to) || target.sentinel.same(to) {
                return TargetMatch {
                    hit: true,
                    address: target.address,
                    sentinel: target.sentinel,
                };
            }
            row += 1;
        }
        TargetMatch {
            hit: false,
            address: Endpoint::NONE,
            sentinel: Endpoint::NONE,
        }
    }

    /// Reports whether a target has this address, at any port.
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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn addresses_and_sentinels_are_stable_across_versions() {
        let targets = Targets::IMDS;
        let shown: std::vec::Vec<_> = targets.rows[..targets.count as usize]
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
