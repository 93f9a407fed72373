//! `craft` runs in a pod and sends TCP packets to the metadata service that bypass every connect hook.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use nix::sys::socket::{LinkAddr, SockaddrLike as _, SockaddrStorage};

/// The arguments of `craft`.
#[derive(Clone, Debug, Args)]
pub struct Craft {
    /// How the packet is sent
    #[arg(long, value_enum)]
    method: Method,
    /// The address that it is sent to
    #[arg(long, default_value = "169.254.169.254:80")]
    to: SocketAddr,
    /// Source address [default: that of the route]
    #[arg(long)]
    source: Option<IpAddr>,
    /// For packet: the interface
    #[arg(long, default_value = "eth0")]
    device: String,
    /// For packet: the next hop's hardware address
    #[arg(long, default_value = "ff:ff:ff:ff:ff:ff")]
    next_hop: String,
    /// How many times it is sent
    #[arg(long, default_value_t = 3)]
    count: usize,
}

/// How a packet bypasses connect hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Method {
    /// IPPROTO_RAW: the sender makes the IP header
    Raw,
    /// IPPROTO_RAW with IP options, or an extension header of IPv6
    RawOptions,
    /// IPPROTO_RAW in two fragments
    RawFragments,
    /// IPPROTO_TCP: the kernel makes the IP header
    RawTcp,
    /// AF_PACKET: the sender makes the Ethernet and IP headers
    Packet,
}

const SOURCE_PORT: u16 = 40_001;
const TCP: u8 = 6;

/// Sends the packets.
pub fn run(craft: &Craft) -> Result<()> {
    let source = match craft.source {
        Some(source) => source,
        None => source_to(craft.to)?,
    };
    let tcp = syn(source, craft.to);
    let packets = match (craft.method, source, craft.to.ip()) {
        (Method::RawTcp, _, _) => vec![tcp],
        (Method::RawFragments, IpAddr::V4(from), IpAddr::V4(to)) => vec![
            ipv4(from, to, 0x2000, &[], &tcp[..8]),
            ipv4(from, to, 1, &[], &tcp[8..]),
        ],
        (method, IpAddr::V4(from), IpAddr::V4(to)) => {
            // Four options of the kind "no operation" (RFC 791, 3.1).
            let options: &[u8] = if method == Method::RawOptions {
                &[1; 4]
            } else {
                &[]
            };
            vec![ipv4(from, to, 0, options, &tcp)]
        }
        (Method::RawOptions, IpAddr::V6(from), IpAddr::V6(to)) => {
            // Destination options with one option, which pads (RFC 8200, 4.6).
            let padded = [&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &tcp].concat();
            vec![ipv6(from, to, 60, &padded)]
        }
        (_, IpAddr::V6(from), IpAddr::V6(to)) => vec![ipv6(from, to, TCP, &tcp)],
        _ => anyhow::bail!("--source and --to have different address families"),
    };
    let (domain, kind, protocol) = match (craft.method, craft.to) {
        (Method::Packet, _) => (libc::AF_PACKET, libc::SOCK_RAW, 0),
        (Method::RawTcp, SocketAddr::V4(_)) => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        (Method::RawTcp, SocketAddr::V6(_)) => (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_TCP),
        (_, SocketAddr::V4(_)) => (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_RAW),
        (_, SocketAddr::V6(_)) => (libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_RAW),
    };
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) };
    ensure!(fd >= 0, "socket: {}", io::Error::last_os_error());
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for _ in 0..craft.count {
        for packet in &packets {
            if craft.method == Method::Packet {
                send_frame(&socket, craft, packet)?;
            } else {
                let to = SockaddrStorage::from(SocketAddr::new(craft.to.ip(), 0));
                send(&socket, packet, to.as_ptr(), to.len())?;
            }
        }
    }
    println!("{{\"sent\": {}}}", craft.count);
    Ok(())
}

fn send(socket: &OwnedFd, bytes: &[u8], to: *const libc::sockaddr, length: libc::socklen_t) -> Result<()> {
    // SAFETY: the packet and the address live through the call and have the lengths that are passed.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            bytes.as_ptr().cast(),
            bytes.len(),
            0,
            to,
            length,
        )
    };
    ensure!(sent >= 0, "sendto: {}", io::Error::last_os_error());
    Ok(())
}

fn send_frame(socket: &OwnedFd, craft: &Craft, packet: &[u8]) -> Result<()> {
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(craft.next_hop.split(':')) {
        *byte = u8::from_str_radix(text, 16).context("--next-hop")?;
    }
    let kind: u16 = if craft.to.is_ipv4() { 0x0800 } else { 0x86dd };
    let own = own_mac(&craft.device)?;
    let frame = [&mac[..], &own, &kind.to_be_bytes(), packet].concat();
    let mut to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: kind.to_be(),
        sll_ifindex: nix::net::if_::if_nametoindex(craft.device.as_str())? as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    to.sll_addr[..6].copy_from_slice(&mac);
    send(
        socket,
        &frame,
        (&raw const to).cast(),
        size_of::<libc::sockaddr_ll>() as u32,
    )
}

fn own_mac(device: &str) -> Result<[u8; 6]> {
    let found = nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == device)
        .find_map(|interface| interface.address?.as_link_addr().and_then(LinkAddr::addr));
    found.with_context(|| format!("{device} has no hardware address"))
}

/// Returns the address that the kernel would send from. No packet is sent.
fn source_to(to: SocketAddr) -> Result<IpAddr> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}

/// Makes a SYN without options (RFC 9293, 3.1).
fn syn(from: IpAddr, to: SocketAddr) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(SOURCE_PORT.to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = Vec::new();
    for ip in [from, to.ip()] {
        match ip {
            IpAddr::V4(ip) => pseudo.extend(ip.octets()),
            IpAddr::V6(ip) => pseudo.extend(ip.octets()),
        }
    }
    pseudo.extend([0, TCP, 0, 20]);
    pseudo.extend(&segment);
    let sum = checksum(&pseudo);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let words = 5 + options.len() / 4;
    let mut packet = vec![0x40 | words as u8, 0];
    packet.extend(((words * 4 + payload.len()) as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, TCP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(options);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// Computes the internet checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
