//! Which port the listeners take, and who holds one that is taken.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::Path;

use crate::node_ports;

/// The API server's default `--service-node-port-range`; kube-proxy may claim any of it at any time.
const NODE_PORT_RANGE: RangeInclusive<u16> = 30_000..=32_767;

/// Where a free port is looked for first: above what services are usually given by hand.
const PREFERRED_PORTS: RangeInclusive<u16> = 10_240..=65_535;

/// Then everywhere that needs no privilege.
const UNPRIVILEGED_PORTS: RangeInclusive<u16> = 1_024..=65_535;

/// `TCP_LISTEN` in /proc/net/tcp (include/net/tcp_states.h).
const TCP_LISTEN: &str = "0A";

/// Ports that must be left to others.
#[derive(Clone, Debug, Default)]
pub struct Avoid {
    ephemeral: Option<RangeInclusive<u16>>,
    single: BTreeSet<u16>,
}

impl Avoid {
    /// This network namespace's ephemeral range and reserved ports (ip-sysctl), and the given host ports.
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

    /// Whether others have or want it: perhaps later than we do.
    fn is_others(&self, port: u16) -> bool {
        NODE_PORT_RANGE.contains(&port)
            || self.single.contains(&port)
            || node_ports::wanted_by(port).is_some()
    }

    /// Ports to try, best first. `start` spreads agents (any number will do). Where nothing is left beside what is to
    /// be avoided, ports of the ephemeral range come last: better one of those than no agent.
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

/// `8080,9148-9150` (Documentation/networking/ip-sysctl, ip_local_reserved_ports).
fn port_list(sysctl: &str) -> Vec<u16> {
    let range = |part: &str| -> Option<RangeInclusive<u16>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    };
    sysctl.trim().split(',').filter_map(range).flatten().collect()
}

/// The process that listens on a port, for an error message: `nginx (pid 1234)`.
///
/// Needs to see the host's processes; where it can't, it says so.
pub fn holder(taken: SocketAddr) -> String {
    listener(taken.port(), Some(taken.ip()))
        .unwrap_or_else(|| "a socket that does not listen (yet)".to_owned())
}

/// Likewise, where any listens on a port of this network namespace: of this address or all of them, or of whichever.
pub fn listener(port: u16, address: Option<IpAddr>) -> Option<String> {
    let inodes: Vec<u64> = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .iter()
        .flat_map(|table| listening_inodes(&fs::read_to_string(table).unwrap_or_default(), port, address))
        .collect();
    let process = inodes.iter().find_map(|inode| process_with_socket(*inode));
    let unseen = || "a process that cannot be seen from here (hostPID would show it)".to_owned();
    (!inodes.is_empty()).then(|| process.unwrap_or_else(unseen))
}

/// Whether a connection of `client` has arrived at this namespace's sockets, or waits behind others that have arrived at
/// the listener and are not accepted yet.
///
/// Reads all TCP sockets of the namespace.
pub fn is_arriving(listener: SocketAddr, client: SocketAddr) -> bool {
    let table = if listener.is_ipv4() {
        "/proc/self/net/tcp"
    } else {
        "/proc/self/net/tcp6"
    };
    shows_arriving(&fs::read_to_string(table).unwrap_or_default(), listener, client)
}

/// The receive queue of a socket that listens is the number of connections that wait to be accepted (proc_net_tcp,
/// `get_tcp4_sock`, net/ipv4/tcp_ipv4.c).
fn shows_arriving(table: &str, listener: SocketAddr, client: SocketAddr) -> bool {
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let &[_, local, remote, state, queues, ..] = fields.as_slice() else {
            return false;
        };
        let waiting = queues.split_once(':').map_or("", |(_, receive)| receive);
        hex_socket(local) == Some(listener)
            && (hex_socket(remote) == Some(client)
                || (state == TCP_LISTEN && u32::from_str_radix(waiting, 16).is_ok_and(|waiting| waiting > 0)))
    })
}

fn hex_socket(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    Some(SocketAddr::new(
        hex_address(address)?,
        u16::from_str_radix(port, 16).ok()?,
    ))
}

/// Inodes of sockets that listen on a port of an address, of every address, or of whichever (proc_net_tcp).
fn listening_inodes(table: &str, wanted: u16, of: Option<IpAddr>) -> Vec<u64> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let local = hex_socket(fields.get(1)?)?;
            let overlaps = local.ip().is_unspecified() || of.is_none_or(|of| of == local.ip());
            if local.port() == wanted && overlaps && *fields.get(3)? == TCP_LISTEN {
                fields.get(9)?.parse().ok()
            } else {
                None
            }
        })
        .collect()
}

/// Words of 32 bits in the machine's byte order, in hexadecimal.
fn hex_address(text: &str) -> Option<IpAddr> {
    let words: Vec<u32> = (0..text.len() / 8)
        .map(|index| u32::from_str_radix(text.get(index * 8..index * 8 + 8)?, 16).ok())
        .collect::<Option<_>>()?;
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    if let Ok(v4) = <[u8; 4]>::try_from(octets.as_slice()) {
        return Some(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(octets.as_slice()).ok()?;
    Some(IpAddr::from(v6).to_canonical())
}

fn process_with_socket(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.filter_map(Result::ok);
    for process in processes {
        let pid = process.file_name();
        if !pid.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let holds = fs::read_dir(process.path().join("fd")).is_ok_and(|descriptors| {
            descriptors
                .filter_map(Result::ok)
                .any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str()))
        });
        if holds {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("{} (pid {})", name.trim(), pid.to_string_lossy()));
        }
    }
    None
}

/// A number that differs between agents, from the standard library's own random state.
pub fn random_start() -> u16 {
    use std::hash::{BuildHasher as _, Hasher as _};
    HashMap::<u8, u8>::new().hasher().build_hasher().finish() as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn avoid(ephemeral: &str, single: &[u16]) -> Avoid {
        Avoid {
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

    #[test]
    fn addresses_of_proc_net_are_read() {
        assert_eq!(hex_address("0100007F"), Some(IpAddr::from([127, 0, 0, 1])));
        let mapped = "0000000000000000FFFF00000100007F";
        assert_eq!(hex_address(mapped), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(hex_address("xyz"), None);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let name = holder(listener.local_addr().unwrap());
        assert!(name.ends_with(&format!("(pid {})", std::process::id())), "{name}");
    }

    #[rstest::rstest]
    #[case::half_open("0A00000A:1FF5 0A00000A:C001 03 00000000:00000000", true)]
    #[case::not_accepted_yet("0A00000A:1FF5 0A00000A:C001 01 00000000:00000010", true)]
    #[case::behind_others("0A00000A:1FF5 00000000:0000 0A 00000000:00000007", true)]
    #[case::an_empty_queue("0A00000A:1FF5 00000000:0000 0A 00000000:00000000", false)]
    #[case::its_own_end("0A00000A:C001 0A00000A:1FF5 01 00000000:00000000", false)]
    #[case::another_client("0A00000A:1FF5 0A00000A:C002 01 00000000:00000010", false)]
    #[case::another_listener("0A00000A:1FF6 0A00000A:C001 01 00000000:00000010", false)]
    #[case::another_listeners_queue("0A00000A:1FF6 00000000:0000 0A 00000000:00000007", false)]
    fn a_connection_that_has_arrived_and_was_not_accepted_is_seen(#[case] row: &str, #[case] is_seen: bool) {
        let table =
            format!("  sl  local_address rem_address st tx_queue rx_queue\n   0: {row} 00:0 0 0 0 777 1\n");
        let at = |port| SocketAddr::from(([10, 0, 0, 10], port));
        assert_eq!(shows_arriving(&table, at(8181), at(0xC001)), is_seen);
    }

    #[rstest::rstest]
    #[case("0A", 8181, None, true)]
    #[case("0A", 8181, Some([10, 0, 0, 1]), true)]
    #[case("0A", 8181, Some([10, 0, 0, 2]), false)]
    #[case("0A", 8182, None, false)]
    #[case("01", 8181, None, false)]
    fn who_listens_is_told_by_port_address_and_state(
        #[case] state: &str,
        #[case] port: u16,
        #[case] of: Option<[u8; 4]>,
        #[case] is_found: bool,
    ) {
        let address = u32::from_ne_bytes([10, 0, 0, 1]);
        let table = format!(
            "  sl  local_address rem_address st\n   0: {address:08X}:1FF5 00000000:0000 {state} 0:0 00:0 0 0 0 777 1\n"
        );
        let want: &[u64] = if is_found { &[777] } else { &[] };
        assert_eq!(listening_inodes(&table, port, of.map(IpAddr::from)), want);
    }
}
