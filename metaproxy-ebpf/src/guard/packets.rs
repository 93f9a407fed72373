//! Drops packets to a metadata address that do not come from the node's own network namespace.
//!
//! At an uplink's egress, a packet that was forwarded has no socket. But a packet keeps the pod's socket if a network
//! plugin redirects it without the IP layer, or if the pod's device is directly on the uplink (macvlan, ipvlan). So a
//! packet passes only if it has a socket, and that is of the node's namespace.

use core::mem::size_of;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_sk_lookup_udp, bpf_sk_release, bpf_sk_storage_get, bpf_skb_load_bytes,
    bpf_skc_lookup_tcp,
};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use metaproxy_common::layout::{GuardConfig, GuardCounter};
use metaproxy_common::packet::{Bytes, LinkLayer, PacketMatch, match_packet};

use crate::maps::{GUARD, MARK, count};
use crate::sockaddr;

/// A packet whose bytes are read by a helper, because they need not be in the linear part of the buffer.
struct Packet(*mut core::ffi::c_void);

impl Bytes for Packet {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool {
        // SAFETY: the context that the kernel gave, and a buffer of that length.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, into.as_mut_ptr().cast(), N as u32) == 0 }
    }
}

/// How the node's own packets are recognized at an uplink.
#[derive(Clone, Copy)]
pub enum NodePacketTest {
    /// By the network namespace of their socket.
    Netns,
    /// By a socket of the node's namespace with their addresses and ports, because there is no helper for the namespace
    /// before Linux 6.15. Packets of the node's own raw sockets have none, and are dropped.
    SocketLookup,
}

/// Reports whether a packet at an uplink must be dropped.
#[inline(always)]
pub fn drop_at_uplink(ctx: &TcContext, link_layer: LinkLayer, test: NodePacketTest) -> bool {
    let Some(config) = GUARD.get(0) else { return false };
    let packet = Packet(ctx.as_ptr());
    let found = match_packet(&packet, link_layer, &config.targets);
    if !found.hit {
        return false;
    }
    let is_of_node = has_socket(ctx.skb.skb)
        && match test {
            NodePacketTest::Netns => {
                // SAFETY: the helper takes the context that the kernel gave, and returns the namespace of its socket.
                let cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
                sockaddr::is_node_netns(cookie, config.node_netns)
            }
            NodePacketTest::SocketLookup => is_flow_of_node(ctx, &packet, &found),
        };
    if !is_of_node {
        count(GuardCounter::Packets);
    }
    !is_of_node
}

#[inline(always)]
fn has_socket(skb: *mut __sk_buff) -> bool {
    // SAFETY: the kernel hands a valid context to the program, and the socket is not dereferenced.
    unsafe { !(*skb).__bindgen_anon_2.sk.is_null() }
}

/// Reports whether a TCP socket of the device's namespace, which is the node's, has this packet's addresses and ports.
#[inline(always)]
fn is_flow_of_node(ctx: &TcContext, packet: &Packet, found: &PacketMatch) -> bool {
    if found.tcp == 0 {
        return false;
    }
    let mut ports = [0; 4];
    packet.load(found.tcp, &mut ports);
    // The look-up expects the addresses of an answer: from the packet's destination to its source.
    let (remote, local) = (
        u16::from_ne_bytes([ports[2], ports[3]]),
        u16::from_ne_bytes([ports[0], ports[1]]),
    );
    if found.is_v6 {
        let mut addresses = [0; 32];
        packet.load(found.ip + 8, &mut addresses);
        let mut tuple = Tuple6 {
            remote: [
                word(&addresses, 16),
                word(&addresses, 20),
                word(&addresses, 24),
                word(&addresses, 28),
            ],
            local: [
                word(&addresses, 0),
                word(&addresses, 4),
                word(&addresses, 8),
                word(&addresses, 12),
            ],
            remote_port: remote,
            local_port: local,
        };
        is_tcp_socket(ctx, (&raw mut tuple).cast(), size_of::<Tuple6>())
    } else {
        let mut addresses = [0; 8];
        packet.load(found.ip + 12, &mut addresses);
        let mut tuple = Tuple4 {
            remote: word(&addresses, 4),
            local: word(&addresses, 0),
            remote_port: remote,
            local_port: local,
        };
        is_tcp_socket(ctx, (&raw mut tuple).cast(), size_of::<Tuple4>())
    }
}

/// Reads four bytes without a change of their order.
#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline(always)]
fn is_tcp_socket(ctx: &TcContext, tuple: *mut bpf_sock_tuple, length: usize) -> bool {
    // SAFETY: the context that the kernel gave, and a tuple of one of the two lengths that it takes.
    let found = unsafe { bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, length as u32, CURRENT_NETNS, 0) };
    if found.is_null() {
        return false;
    }
    // SAFETY: a socket that was just looked up, and is not used after it is released.
    let state = unsafe { (*found).state };
    // SAFETY: as above.
    unsafe { bpf_sk_release(found.cast()) };
    // If no connection has these addresses, the look-up finds a socket that listens on the port.
    state != BPF_TCP_LISTEN
}

const CURRENT_NETNS: u64 = BPF_F_CURRENT_NETNS as i64 as u64;

/// `bpf_sock_tuple.ipv4` (include/uapi/linux/bpf.h), all in network byte order.
#[repr(C)]
struct Tuple4 {
    remote: u32,
    local: u32,
    remote_port: u16,
    local_port: u16,
}

/// `bpf_sock_tuple.ipv6`.
#[repr(C)]
struct Tuple6 {
    remote: [u32; 4],
    local: [u32; 4],
    remote_port: u16,
    local_port: u16,
}

/// Reports whether a packet at a socket of the pods' cgroup must be dropped. It begins with its IP header.
#[inline(always)]
pub fn drop_at_socket(ctx: &SkBuffContext) -> bool {
    let Some(config) = GUARD.get(0) else { return false };
    let hit = match_packet(&Packet(ctx.as_ptr()), LinkLayer::Ip, &config.targets).hit;
    if !hit || is_node_netns(ctx, config) {
        return false;
    }
    count(GuardCounter::Packets);
    true
}

/// Reports whether the packet leaves by a device of the node's namespace, which is the only one with the guard's marked
/// socket. Before Linux 6.15, no helper returns the namespace to this type of program.
#[inline(always)]
fn is_node_netns(ctx: &SkBuffContext, config: &GuardConfig) -> bool {
    let mut tuple = Tuple4 {
        remote: LOOPBACK,
        local: LOOPBACK,
        remote_port: 1_u16.to_be(),
        local_port: config.marker.be(),
    };
    // SAFETY: the context that the kernel gave, and a tuple of one of the two lengths that it takes.
    let found: *mut bpf_sock = unsafe {
        bpf_sk_lookup_udp(
            ctx.as_ptr(),
            (&raw mut tuple).cast(),
            size_of::<Tuple4>() as u32,
            CURRENT_NETNS,
            0,
        )
    };
    if found.is_null() {
        return false;
    }
    // SAFETY: a socket storage map, and the socket that was just looked up and is released afterwards.
    unsafe {
        let mark = bpf_sk_storage_get(
            ptr::from_ref(&MARK).cast_mut().cast(),
            found.cast(),
            ptr::null_mut(),
            0,
        );
        bpf_sk_release(found.cast());
        !mark.is_null()
    }
}

/// 127.0.0.1
const LOOPBACK: u32 = u32::from_ne_bytes([127, 0, 0, 1]);
