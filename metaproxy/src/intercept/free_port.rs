//! Chooses a free port for the listeners that no other software is known to use.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use crate::node_ports;

/// The API server's default `--service-node-port-range`. kube-proxy may claim any port of it at any time.
const NODE_PORT_RANGE: RangeInclusive<u16> = 30_000..=32_767;

/// The ports that are tried first, which are above those that operators usually choose for services.
const PREFERRED_PORTS: RangeInclusive<u16> = 10_240..=65_535;

/// All ports that need no privilege.
const UNPRIVILEGED_PORTS: RangeInclusive<u16> = 1_024..=65_535;

/// The ports that must be left to other software.
#[derive(Clone, Debug, Default)]
pub struct AvoidedPorts {
    ephemeral: Option<RangeInclusive<u16>>,
    single: BTreeSet<u16>,
}

impl AvoidedPorts {
    /// Reads this network namespace's ephemeral range and reserved ports (ip-sysctl), and adds the given host ports.
    pub fn of_this_node(host_ports: impl IntoIterator<Item = u16>) -> Self {
        let sysctl =
            |name: &str| fs::read_to_string(Path::new("/proc/sys/net/ipv4").join(name)).unwrap_or_default();
        let mut single: BTreeSet<u16> = host_ports.into_iter().collect();
        single.extend(port_list(&sysctl("ip_local_reserved_ports")));
        Self {
            ephemeral: ephemeral_range(&sysctl("ip_local_port_range")),
            single,
        }
    }

    fn contains(&self, port: u16) -> bool {
        self.is_others(port) || self.ephemeral.as_ref().is_some_and(|range| range.contains(&port))
    }

    /// Reports whether other software uses the port, or may use it later.
    fn is_others(&self, port: u16) -> bool {
        NODE_PORT_RANGE.contains(&port)
            || self.single.contains(&port)
            || node_ports::wanted_by(port).is_some()
    }

    /// Returns the ports to try, the best first. `start` is any number, and different numbers spread agents over the
    /// ports. Ports of the ephemeral range come last, because an agent on one of them is better than none.
    pub fn candidates(&self, start: u16) -> impl Iterator<Item = u16> {
        let rotated = |ports: Vec<u16>| {
            let (count, start) = (ports.len(), usize::from(start));
            (0..count).map(move |step| ports[(start + step) % count])
        };
        let (preferred, low): (Vec<u16>, Vec<u16>) = UNPRIVILEGED_PORTS
            .filter(|port| !self.contains(*port))
            .partition(|port| PREFERRED_PORTS.contains(port));
        let last = UNPRIVILEGED_PORTS
            .filter(|port| self.contains(*port))
            .filter(|port| !self.is_others(*port))
            .collect();
        rotated(preferred).chain(rotated(low)).chain(rotated(last))
    }
}

fn ephemeral_range(sysctl: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = sysctl.split_whitespace().map(str::parse);
    Some(numbers.next()?.ok()?..=numbers.next()?.ok()?)
}

/// Parses a list of ports and ranges, such as `8080,9148-9150` (Documentation/networking/ip-sysctl,
/// ip_local_reserved_ports).
fn port_list(sysctl: &str) -> Vec<u16> {
    let range = |part: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    sysctl.trim().split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn avoid(ephemeral: &str, single: &[u16]) -> AvoidedPorts {
        AvoidedPorts {
            ephemeral: ephemeral_range(ephemeral),
            single: single.iter().copied().collect(),
        }
    }

    #[test]
    fn sysctls_are_read_as_the_kernel_writes_them() {
        assert_eq!(ephemeral_range("32768\t60999\n"), Some(32_768..=60_999));
        assert_eq!(ephemeral_range(""), None);
        assert_eq!(port_list("8080,9148-9150\n"), [8080, 9148, 9149, 9150]);
        assert!(port_list("\n").is_empty());
    }

    proptest! {
        #[test]
        fn a_free_port_is_outside_the_ephemeral_and_node_port_ranges(start: u16, host_port: u16) {
            let avoid = avoid("32768 60999", &[host_port]);
            for port in avoid.candidates(start).take(20_000) {
                prop_assert!(!(32_768..=60_999).contains(&port) && !(30_000..=32_767).contains(&port));
                prop_assert!(port != host_port && port >= 1_024);
                prop_assert!(node_ports::wanted_by(port).is_none(), "{} is somebody's", port);
            }
        }
    }

    #[test]
    fn a_node_whose_ephemeral_range_is_everything_still_has_candidates() {
        let avoid = avoid("1024 65535", &[8181]);
        let all: Vec<u16> = avoid.candidates(7).collect();
        assert!(all.len() > 60_000);
        assert!(!all.contains(&8181) && !all.contains(&30_500));
    }
}
