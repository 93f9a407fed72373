//! Matches packets that a guard may have to drop: a pure decision about the bytes of a packet.
//!
//! Only the first fragment of a datagram has ports. Later fragments pass, because a receiver cannot use them without
//! the first. A packet to a metadata address whose ports cannot be read counts as a match.

use crate::address::{Address, Endpoint, Port};
use crate::target::Targets;

/// Reads the bytes of a packet, in kernel memory or on the host.
pub trait Bytes {
    /// Fills `into` from an offset; `false` if the packet ends before that.
    fn load<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool;
}

/// The header with which a packet begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header, and perhaps VLAN tags.
    Ethernet,
    /// An IP header.
    Ip,
}

/// The result of matching a packet with the targets. It is a plain struct for the reason given at
/// [`TargetMatch`](crate::target::TargetMatch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketMatch {
    /// Whether it is TCP to a target, as far as its headers can be read.
    pub hit: bool,
    /// The offset of the IP header.
    pub ip: u32,
    /// Whether the IP header is IPv6.
    pub is_v6: bool,
    /// The offset of the TCP header; 0 if it cannot be read.
    pub tcp: u32,
}

impl PacketMatch {
    const NONE: Self = Self {
        hit: false,
        ip: 0,
        is_v6: false,
        tcp: 0,
    };
}

const ETHERTYPE: u32 = 12;
const ETHERNET: u32 = 14;
// include/uapi/linux/if_ether.h
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;
/// The maximum number of VLAN tags of a frame: an outer and an inner one (IEEE 802.1ad).
const MAX_TAGS: u32 = 2;

// include/uapi/linux/in.h, include/uapi/linux/in6.h
const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// The maximum number of extension headers that are read. RFC 8200 recommends each at most once (destination options
/// twice), which makes six.
const MAX_EXTENSIONS: u32 = 8;

/// Matches a packet with the targets.
#[inline(always)]
pub fn match_packet<B: Bytes>(bytes: &B, link_layer: LinkLayer, targets: &Targets) -> PacketMatch {
    match link_layer {
        LinkLayer::Ethernet => {
            let mut at = ETHERTYPE;
            let mut tags = 0;
            while tags <= MAX_TAGS {
                match word(bytes, at) {
                    ETH_P_IP => return ipv4(bytes, at + (ETHERNET - ETHERTYPE), targets),
                    ETH_P_IPV6 => return ipv6(bytes, at + (ETHERNET - ETHERTYPE), targets),
                    ETH_P_8021Q | ETH_P_8021AD => at += 4,
                    _ => return PacketMatch::NONE,
                }
                tags += 1;
            }
            PacketMatch::NONE
        }
        LinkLayer::Ip => {
            let mut first = [0; 1];
            bytes.load(0, &mut first);
            match first[0] >> 4 {
                4 => ipv4(bytes, 0, targets),
                6 => ipv6(bytes, 0, targets),
                _ => PacketMatch::NONE,
            }
        }
    }
}

/// Reads two bytes in network byte order; 0 if the packet ends before them.
#[inline(always)]
fn word<B: Bytes>(bytes: &B, at: u32) -> u16 {
    let mut word = [0; 2];
    bytes.load(at, &mut word);
    u16::from_be_bytes(word)
}

/// Matches an IPv4 packet (RFC 791).
#[inline(always)]
fn ipv4<B: Bytes>(bytes: &B, at: u32, targets: &Targets) -> PacketMatch {
    let mut destination = [0; 4];
    if !bytes.load(at + 16, &mut destination) {
        return PacketMatch::NONE;
    }
    let address = Address::from_v4_word(u32::from_ne_bytes(destination));
    if !targets.has_address(&address) {
        return PacketMatch::NONE;
    }
    let mut head = [0; 10];
    bytes.load(at, &mut head);
    let later_fragment = (u16::from_be_bytes([head[6], head[7]]) & 0x1fff) != 0;
    if head[9] != TCP || later_fragment {
        return PacketMatch::NONE;
    }
    PacketMatch {
        ip: at,
        is_v6: false,
        ..at_port(bytes, at + u32::from(head[0] & 0x0f) * 4, address, targets)
    }
}

/// Matches an IPv6 packet (RFC 8200).
#[inline(always)]
fn ipv6<B: Bytes>(bytes: &B, at: u32, targets: &Targets) -> PacketMatch {
    let mut destination = [0; 16];
    if !bytes.load(at + 24, &mut destination) {
        return PacketMatch::NONE;
    }
    let mut words = [0; 4];
    let mut index = 0;
    while index < 4 {
        let first = index * 4;
        words[index] = u32::from_ne_bytes([
            destination[first],
            destination[first + 1],
            destination[first + 2],
            destination[first + 3],
        ]);
        index += 1;
    }
    let address = Address::from_v6_words(words);
    if !targets.has_address(&address) {
        return PacketMatch::NONE;
    }
    let mut next = [0; 1];
    bytes.load(at + 6, &mut next);
    let ip = at;
    let unreadable = PacketMatch {
        hit: true,
        ip,
        is_v6: true,
        tcp: 0,
    };
    let mut kind = next[0];
    let mut at = at + 40;
    let mut headers = 0;
    while headers < MAX_EXTENSIONS {
        if kind == TCP {
            return PacketMatch {
                ip,
                is_v6: true,
                ..at_port(bytes, at, address, targets)
            };
        }
        let mut head = [0; 4];
        let is_extension = matches!(
            kind,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
        );
        if !is_extension {
            return PacketMatch::NONE;
        }
        if !bytes.load(at, &mut head) {
            return unreadable;
        }
        let length = u32::from(head[1]);
        if kind == FRAGMENT {
            if u16::from_be_bytes([head[2], head[3]]) & 0xfff8 != 0 {
                return PacketMatch::NONE;
            }
            at += 8;
        } else if kind == AUTHENTICATION {
            // RFC 4302 gives the length in words of four bytes, less two.
            at += (length + 2) * 4;
        } else {
            at += (length + 1) * 8;
        }
        kind = head[0];
        headers += 1;
    }
    unreadable
}

/// Matches the destination port of a TCP header. A port that cannot be read counts as a target's.
#[inline(always)]
fn at_port<B: Bytes>(bytes: &B, tcp: u32, address: Address, targets: &Targets) -> PacketMatch {
    let mut port = [0; 2];
    let is_there = bytes.load(tcp + 2, &mut port);
    let port = Port::from_be(u16::from_ne_bytes(port));
    PacketMatch {
        hit: !is_there || targets.find(&Endpoint::new(address, port)).hit,
        tcp: if is_there { tcp } else { 0 },
        ..PacketMatch::NONE
    }
}

#[cfg(test)]
mod tests;
