//! Looks up TCP sockets of this network namespace, and the processes that hold them.

use std::net::{IpAddr, SocketAddr};

use procfs::net::{TcpNetEntry, TcpState};
use procfs::process::{FDTarget, Process, all_processes};

/// Returns the process that holds a taken address, for an error message: `nginx (pid 1234)`.
///
/// If this process does not see the host's processes (hostPID), it returns a text that says so.
pub fn holder(taken: SocketAddr) -> String {
    listener(taken.port(), Some(taken.ip()))
        .unwrap_or_else(|| "a socket that does not listen (yet)".to_owned())
}

/// Returns the process that listens on a port, in the form of [`holder`]; `None` if none listens. A socket counts if
/// it listens at `address` or at every address. Without `address` every socket that listens on the port counts.
pub fn listener(port: u16, address: Option<IpAddr>) -> Option<String> {
    let sockets = [procfs::net::tcp(), procfs::net::tcp6()];
    let inodes: Vec<u64> = sockets
        .into_iter()
        .flatten()
        .flatten()
        .filter(|socket| listens_on(socket, port, address))
        .map(|socket| socket.inode)
        .collect();
    let process = inodes.iter().find_map(|inode| process_with_socket(*inode));
    let unseen = || "a process that cannot be seen from here (hostPID would show it)".to_owned();
    (!inodes.is_empty()).then(|| process.unwrap_or_else(unseen))
}

fn listens_on(socket: &TcpNetEntry, port: u16, address: Option<IpAddr>) -> bool {
    let local = canonical(socket.local_address);
    let overlaps = local.ip().is_unspecified() || address.is_none_or(|address| address == local.ip());
    socket.state == TcpState::Listen && local.port() == port && overlaps
}

/// Reports whether a connection of `client` has arrived at the listener. It also returns true if other connections
/// wait at the listener to be accepted, because the connection may wait behind them.
///
/// Reads all TCP sockets of the namespace.
pub fn is_arriving(listener: SocketAddr, client: SocketAddr) -> bool {
    let sockets = if listener.is_ipv4() {
        procfs::net::tcp()
    } else {
        procfs::net::tcp6()
    };
    sockets.is_ok_and(|sockets| {
        let mut sockets = sockets.iter();
        sockets.any(|socket| shows_arriving(socket, listener, client))
    })
}

/// Reports whether a socket shows that the connection has arrived or may wait. The receive queue of a listening
/// socket is the number of connections that wait to be accepted (proc_net_tcp, `get_tcp4_sock`, net/ipv4/tcp_ipv4.c).
fn shows_arriving(socket: &TcpNetEntry, listener: SocketAddr, client: SocketAddr) -> bool {
    canonical(socket.local_address) == listener
        && (canonical(socket.remote_address) == client
            || (socket.state == TcpState::Listen && socket.rx_queue > 0))
}

/// Converts an IPv4-mapped address into IPv4, because IPv6 sockets show IPv4 addresses in that form.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn process_with_socket(inode: u64) -> Option<String> {
    let holds = |process: &Process| {
        let mut descriptors = process.fd().into_iter().flatten().flatten();
        descriptors.any(|descriptor| matches!(descriptor.target, FDTarget::Socket(socket) if socket == inode))
    };
    let process = all_processes().ok()?.flatten().find(holds)?;
    let name = process.stat().map(|stat| stat.comm).unwrap_or_default();
    Some(format!("{name} (pid {})", process.pid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufReadSI as _;
    use procfs::net::TcpNetEntries;

    /// Reads a row of /proc/net/tcp that begins with the local address.
    fn socket(row: &str) -> TcpNetEntry {
        let table =
            format!("  sl  local_address rem_address st tx_queue rx_queue\n   0: {row} 00:0 0 0 0 777 1\n");
        let read = TcpNetEntries::from_buf_read(table.as_bytes(), procfs::current_system_info());
        read.unwrap().0.remove(0)
    }

    #[test]
    fn an_ipv4_address_of_an_ipv6_socket_is_ipv4() {
        let mapped = "0000000000000000FFFF00000100007F:1FF5";
        let socket = socket(&format!("{mapped} {mapped} 01 00000000:00000000"));
        assert_eq!(
            canonical(socket.local_address),
            SocketAddr::from(([127, 0, 0, 1], 8181))
        );
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
        let at = |port| SocketAddr::from(([10, 0, 0, 10], port));
        assert_eq!(shows_arriving(&socket(row), at(8181), at(0xC001)), is_seen);
    }

    #[rstest::rstest]
    #[case("0A", 8181, None, true)]
    #[case("0A", 8181, Some([10, 0, 0, 1]), true)]
    #[case("0A", 8181, Some([10, 0, 0, 2]), false)]
    #[case("0A", 8182, None, false)]
    #[case("01", 8181, None, false)]
    fn a_listening_socket_is_recognized_by_port_address_and_state(
        #[case] state: &str,
        #[case] port: u16,
        #[case] of: Option<[u8; 4]>,
        #[case] is_found: bool,
    ) {
        let address = u32::from_ne_bytes([10, 0, 0, 1]);
        let row = format!("{address:08X}:1FF5 00000000:0000 {state} 00000000:00000000");
        assert_eq!(listens_on(&socket(&row), port, of.map(IpAddr::from)), is_found);
    }
}
