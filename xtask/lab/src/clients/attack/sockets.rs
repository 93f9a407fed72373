//! Sockets that send and receive raw packets, and sockets that keep the kernel from answering them.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{SockaddrLike as _, SockaddrStorage, setsockopt, sockopt};

use super::wire::Segment;

fn check(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Ignores the error of a full queue (`ENOBUFS`). The packet is lost, as packets can be lost on the way.
fn unless_lost(sent: io::Result<i32>) -> io::Result<()> {
    match sent {
        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => Err(error),
        _ => Ok(()),
    }
}

fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a stream socket.
pub fn stream(address: &SocketAddr) -> io::Result<OwnedFd> {
    let domain = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    socket(domain, libc::SOCK_STREAM, 0)
}

/// Calls `bind()` or `connect()`.
pub fn with_address(
    call: unsafe extern "C" fn(i32, *const libc::sockaddr, libc::socklen_t) -> i32,
    socket: &OwnedFd,
    address: SocketAddr,
) -> io::Result<()> {
    let storage = SockaddrStorage::from(address);
    // SAFETY: the address lives through the call and has the length that is passed.
    check(unsafe { call(socket.as_raw_fd(), storage.as_ptr(), storage.len()) }).map(|_| ())
}

/// Sends packets with their IP headers (raw(7)).
#[derive(Debug)]
pub struct Sender(OwnedFd);

impl Sender {
    /// Makes a sender that sends through the route's interface, or through this one.
    pub fn new(device: Option<&str>) -> io::Result<Self> {
        let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        if let Some(device) = device {
            setsockopt(&socket, sockopt::BindToDevice, &device.into())?;
        }
        Ok(Self(socket))
    }

    /// Sends a segment.
    pub fn send(&self, segment: &Segment) -> io::Result<()> {
        self.send_packet(&segment.packet(), *segment.destination.ip())
    }

    /// Sends a packet.
    pub fn send_packet(&self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        let storage = SockaddrStorage::from(SocketAddrV4::new(to, 0));
        // SAFETY: the packet and the address live through the call and have the lengths that are passed.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                storage.as_ptr(),
                storage.len(),
            )
        };
        unless_lost(check(sent as i32))
    }
}

/// Receives packets.
#[derive(Debug)]
pub struct Receiver {
    socket: OwnedFd,
    /// The length of the link layer's header.
    link: usize,
}

impl Receiver {
    /// Receives every TCP packet for this network namespace.
    pub fn local() -> io::Result<Self> {
        let socket = socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)?;
        Self::with_buffer(socket, 0)
    }

    /// Receives every IPv4 packet that arrives at an interface, whether or not it is for this network namespace.
    pub fn at(device: &str) -> io::Result<Self> {
        let protocol = (libc::ETH_P_IP as u16).to_be();
        // With protocol 0 the socket receives nothing before it is bound (packet(7)). With another protocol it would
        // queue packets of all interfaces until then.
        let socket = socket(libc::AF_PACKET, libc::SOCK_RAW, 0)?;
        let on: i32 = 1;
        // SAFETY: the value is an int, which has the length that is passed.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                4,
            )
        })?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: nix::net::if_::if_nametoindex(device)? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address lives through the call and has the length that is passed.
        check(unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        })?;
        Self::with_buffer(socket, 14)
    }

    fn with_buffer(socket: OwnedFd, link: usize) -> io::Result<Self> {
        setsockopt(&socket, sockopt::RcvBuf, &(8 << 20))?;
        let wait = nix::sys::time::TimeVal::new(0, 20_000);
        setsockopt(&socket, sockopt::ReceiveTimeout, &wait)?;
        Ok(Self { socket, link })
    }

    /// Sets how long a receive waits.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        let wait = nix::sys::time::TimeVal::new(0, timeout.as_micros() as i64);
        Ok(setsockopt(&self.socket, sockopt::ReceiveTimeout, &wait)?)
    }

    /// Returns the next TCP segment with its link-layer header, or `None` after the timeout (20 ms unless set).
    pub fn next(&self, buffer: &mut [u8; 4096]) -> io::Result<Option<(Vec<u8>, Segment)>> {
        // SAFETY: the buffer has the length that is passed.
        let length = unsafe {
            libc::recv(
                self.socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
            )
        };
        match check(length as i32) {
            Ok(length) => {
                let frame = &buffer[..(length as usize).min(buffer.len())];
                let Some((link, packet)) = frame.split_at_checked(self.link) else {
                    return Ok(None);
                };
                Ok(Segment::parse(packet).map(|segment| (link.to_vec(), segment)))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Sends an answer to a frame through the interface of this receiver.
    pub fn answer(&self, link: &[u8], segment: &Segment) -> io::Result<()> {
        let frame = [&link[6..12], &link[..6], &link[12..14], &segment.packet()].concat();
        // SAFETY: the frame has the length that is passed.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        unless_lost(check(sent as i32))
    }
}

/// Makes a socket drop every packet, without any capability: by a filter, or, on kernels that require CAP_NET_ADMIN for
/// that, by a minimum time to live that only a neighbour's packet can have.
pub fn drop_all(socket: &OwnedFd) -> io::Result<()> {
    match attach_filter(socket) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let most: i32 = 255;
            // SAFETY: the value is an int, which has the length that is passed.
            check(unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_MINTTL,
                    (&raw const most).cast(),
                    4,
                )
            })
            .map(|_| ())
        }
        other => other,
    }
}

fn attach_filter(socket: &OwnedFd) -> io::Result<()> {
    // BPF_RET | BPF_K: no byte is let through.
    let mut code = [libc::sock_filter {
        code: 0x06,
        jt: 0,
        jf: 0,
        k: 0,
    }];
    let program = libc::sock_fprog {
        len: 1,
        filter: code.as_mut_ptr(),
    };
    // SAFETY: the program lives through the call and has the length that is passed.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as u32,
        )
    })
    .map(|_| ())
}

/// Binds a port, so that the kernel answers its packets neither with a handshake nor with a reset.
pub fn silence(address: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = stream(&address.into())?;
    drop_all(&socket)?;
    with_address(libc::bind, &socket, address.into())?;
    // SAFETY: takes no pointer.
    check(unsafe { libc::listen(socket.as_raw_fd(), 1) })?;
    Ok(socket)
}
