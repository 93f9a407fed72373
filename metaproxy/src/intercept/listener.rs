//! Opens the listeners to which pods' connections are sent.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;

use aya::maps::{HashMap, MapData, MapError, SkStorage};
use metaproxy_common::address::Endpoint;
use metaproxy_common::layout::{Arrival, ArrivalState, Destination};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};

use super::free_port::AvoidedPorts;
use super::{kernel, tcp_sockets};

/// How many connections may wait to be accepted. The kernel limits it to `net.core.somaxconn` (4096 by default).
const BACKLOG: u32 = 4096;

/// The choice of a port.
#[derive(Clone, Debug)]
pub enum PortChoice {
    /// This port; if it is taken, that is an error.
    Fixed(u16),
    /// Any free port that is not to be avoided.
    Free(AvoidedPorts),
}

/// The reasons why there is no listener.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The fixed port is in use.
    #[error("--listen-port {}: {address} is already taken by {holder}; choose another port, or 0 for a free one", address.port())]
    Taken {
        /// The wanted address.
        address: SocketAddr,
        /// The process that holds it.
        holder: String,
    },
    /// An address is not one of this node.
    #[error("--listen-address {0}: not an address of this node's network interfaces")]
    NotOurs(IpAddr),
    /// There is no address.
    #[error(
        "this node has no address at which pods could reach the listener (only loopback and link-local ones were \
         found); name one with --listen-address"
    )]
    NoAddress,
    /// There is no free port.
    #[error("no free port was found on {0}")]
    NoPort(IpAddr),
    /// The listener cannot be marked.
    #[error("cannot mark the listener {address} for the program that verifies callers: {source}")]
    Unmarked {
        /// The listener's address.
        address: SocketAddr,
        /// The kernel's error.
        source: MapError,
    },
    /// The program that verifies callers does not see the listener.
    #[error(
        "the program that verifies callers does not see the listener {0}: another sock_ops program at the agent's own cgroup, or \
         above, undoes what it sets. `metaproxy doctor` names the programs there"
    )]
    Unseen(SocketAddr),
    /// A socket cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Io {
        /// The listener's address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

/// A set of listening sockets, all on one port.
#[derive(Debug)]
pub struct Listeners {
    sockets: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
}

/// Makes listeners known to the program that verifies callers.
pub trait Mark {
    /// Marks a socket that is bound to an address, and does not listen yet.
    ///
    /// # Errors
    /// If the kernel refuses.
    fn mark(&mut self, socket: &TcpSocket, address: SocketAddr) -> Result<(), MapError>;

    /// Reports whether the program has seen it listen.
    ///
    /// # Errors
    /// If the mark cannot be read.
    fn is_seen(&self, listener: &TcpListener) -> Result<bool, MapError>;

    /// Forgets the address of a listener that was closed, or could not be opened.
    fn forget(&mut self, address: SocketAddr);
}

/// The maps by which the program recognizes the agent's listeners.
#[derive(Debug)]
pub struct ListenerMarks {
    arrivals: SkStorage<MapData, Arrival>,
    addresses: HashMap<MapData, Endpoint, u8>,
}

impl ListenerMarks {
    /// Makes marks in these maps.
    pub fn new(arrivals: SkStorage<MapData, Arrival>, addresses: HashMap<MapData, Endpoint, u8>) -> Self {
        Self { arrivals, addresses }
    }
}

impl Mark for ListenerMarks {
    fn mark(&mut self, socket: &TcpSocket, address: SocketAddr) -> Result<(), MapError> {
        self.addresses.insert(Endpoint::from_socket(address), 0, 0)?;
        self.arrivals.insert(socket, Arrival::LISTENER, 0)
    }

    fn is_seen(&self, listener: &TcpListener) -> Result<bool, MapError> {
        Ok(self.arrivals.get(listener, 0)?.state == ArrivalState::LISTENING)
    }

    fn forget(&mut self, address: SocketAddr) {
        // An address without a mark causes an error without consequence.
        let _ = self.addresses.remove(&Endpoint::from_socket(address));
    }
}

impl Listeners {
    /// Listens on every address, on one port. It must be called within a tokio runtime, after the program that verifies
    /// callers was attached to this process's cgroup.
    ///
    /// # Errors
    /// If a socket cannot be opened or marked, or no port is free.
    pub fn open(
        addresses: &[IpAddr],
        choice: &PortChoice,
        marks: &mut impl Mark,
    ) -> Result<Self, ListenError> {
        match choice {
            PortChoice::Fixed(port) => Self::on_port(addresses, *port, marks).map_err(|error| match error {
                ListenError::Io { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                    ListenError::Taken {
                        address,
                        holder: tcp_sockets::holder(address),
                    }
                }
                other => other,
            }),
            PortChoice::Free(avoid) => {
                for port in avoid.candidates(fastrand::u16(..)) {
                    match Self::on_port(addresses, port, marks) {
                        Err(ListenError::Io { source, .. }) if source.kind() == io::ErrorKind::AddrInUse => {}
                        result => return result,
                    }
                }
                Err(ListenError::NoPort(
                    addresses.first().copied().ok_or(ListenError::NoAddress)?,
                ))
            }
        }
    }

    fn on_port(addresses: &[IpAddr], port: u16, marks: &mut impl Mark) -> Result<Self, ListenError> {
        let mut sockets = Vec::with_capacity(addresses.len());
        let mut bound = Vec::with_capacity(addresses.len());
        for ip in addresses {
            let address = SocketAddr::new(*ip, port);
            let socket = listen(address, marks).inspect_err(|_| {
                for address in bound.iter().chain([&address]) {
                    marks.forget(*address);
                }
            })?;
            sockets.push(socket);
            bound.push(address);
        }
        if sockets.is_empty() {
            return Err(ListenError::NoAddress);
        }
        Ok(Self {
            sockets,
            addresses: bound,
        })
    }

    /// Returns the addresses, of which there is at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the destination of redirected connections: the first listener of each family.
    pub fn destination(&self) -> Destination {
        let first = |is_v4: bool| {
            let found = self.addresses.iter().find(|address| address.is_ipv4() == is_v4);
            found.map_or(Endpoint::NONE, |address| Endpoint::from_socket(*address))
        };
        Destination {
            v4: first(true),
            v6: first(false),
        }
    }

    /// Returns the sockets with their addresses, to accept from.
    pub fn into_sockets(self) -> impl Iterator<Item = (TcpListener, SocketAddr)> {
        self.sockets.into_iter().zip(self.addresses)
    }
}

fn listen(address: SocketAddr, marks: &mut impl Mark) -> Result<TcpListener, ListenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrNotAvailable => ListenError::NotOurs(address.ip()),
        _ => ListenError::Io { address, source },
    };
    let unmarked = |source| ListenError::Unmarked { address, source };
    let socket = bound(address).map_err(failed)?;
    marks.mark(&socket, address).map_err(unmarked)?;
    let listener = socket.listen(BACKLOG).map_err(failed)?;
    kernel::refuse_fast_open(listener.as_fd()).map_err(failed)?;
    if marks.is_seen(&listener).map_err(unmarked)? {
        Ok(listener)
    } else {
        Err(ListenError::Unseen(address))
    }
}

fn bound(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A fixed port must be available again while old connections are in TIME_WAIT. SO_REUSEPORT must not be set,
    // because another process could take a share of the pods' connections then.
    socket.set_reuseaddr(true)?;
    // Accepted sockets inherit it (`sk_clone_lock` copies the listener's socket), which saves a system call for each.
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Returns the node's addresses at which pods reach it: for each family the source address of the default route, else
/// the first one of an interface that is neither loopback nor link-local.
pub fn node_addresses() -> Vec<IpAddr> {
    // `connect` of a UDP socket sends no packet and only looks up the route to these documentation addresses (RFC 5737,
    // RFC 3849).
    let routed = [("0.0.0.0:0", "192.0.2.1:9"), ("[::]:0", "[2001:db8::1]:9")].map(|(local, remote)| {
        let socket = UdpSocket::bind(local).ok()?;
        socket.connect(remote).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(is_reachable)
    });
    let interfaces = interface_addresses();
    let of_family = |is_v4: bool| interfaces.iter().find(|ip| ip.is_ipv4() == is_v4).copied();
    let [v4, v6] = routed;
    [v4.or_else(|| of_family(true)), v6.or_else(|| of_family(false))]
        .into_iter()
        .flatten()
        .collect()
}

fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter(|interface| {
            interface.flags.contains(InterfaceFlags::IFF_UP)
                && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
        })
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(is_reachable)
        .collect()
}

/// Reports whether pods can reach an address. They cannot reach loopback and link-local addresses, which exist on their
/// own links too; the metadata service has one.
fn is_reachable(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_link_local() || ip.is_unspecified()),
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks of a test without programs.
    struct NoProgram;

    impl Mark for NoProgram {
        fn mark(&mut self, _socket: &TcpSocket, _address: SocketAddr) -> Result<(), MapError> {
            Ok(())
        }

        fn is_seen(&self, _listener: &TcpListener) -> Result<bool, MapError> {
            Ok(true)
        }

        fn forget(&mut self, _address: SocketAddr) {}
    }

    fn loopback() -> [IpAddr; 1] {
        [IpAddr::from([127, 0, 0, 1])]
    }

    #[tokio::test]
    async fn a_fixed_port_that_is_taken_is_an_error_that_names_its_holder() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let error = Listeners::open(&loopback(), &PortChoice::Fixed(port), &mut NoProgram)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("--listen-port {port}")), "{error}");
        assert!(
            error.contains(&format!("(pid {})", std::process::id())),
            "{error}"
        );
    }

    #[tokio::test]
    async fn port_0_takes_the_next_one_where_one_is_taken() {
        let avoid = AvoidedPorts::of_this_node([]);
        let first = Listeners::open(&loopback(), &PortChoice::Free(avoid.clone()), &mut NoProgram).unwrap();
        let taken = first.addresses()[0].port();
        let next = avoid.candidates(0).skip_while(|port| *port != taken).nth(1);
        assert!(next.is_some());
        let second = Listeners::open(&loopback(), &PortChoice::Free(avoid), &mut NoProgram).unwrap();
        assert_ne!(second.addresses()[0].port(), taken);
    }

    #[tokio::test]
    async fn accepted_sockets_send_without_delay() {
        let avoid = AvoidedPorts::of_this_node([]);
        let listeners = Listeners::open(&loopback(), &PortChoice::Free(avoid), &mut NoProgram).unwrap();
        let (listener, address) = listeners.into_sockets().next().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(accepted.nodelay().unwrap());
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_an_error_that_names_it() {
        let error = Listeners::open(
            &[IpAddr::from([192, 0, 2, 1])],
            &PortChoice::Fixed(20_000),
            &mut NoProgram,
        )
        .unwrap_err();
        assert!(
            error
                .to_string()
                .contains("--listen-address 192.0.2.1: not an address of this node")
        );
    }

    #[test]
    fn loopback_and_link_local_addresses_are_not_where_pods_reach_us() {
        for text in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::"] {
            assert!(!is_reachable(&text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "192.168.1.1", "fd00::1", "2001:db8::1"] {
            assert!(is_reachable(&text.parse().unwrap()), "{text}");
        }
    }
}
