//! TCP segments over IPv4.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::clients::craft::{checksum, ipv4};

/// Control bits of a TCP header (RFC 9293, 3.1).
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// The kind and the experiment id of metaproxy's option in a packet.
const OURS: (u8, [u8; 2]) = (253, *b"MP");

/// A TCP segment with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    /// Makes a segment without options or payload.
    pub fn new(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        Self {
            source,
            destination,
            sequence: 0,
            acknowledged: 0,
            flags,
            window: 64_240,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// Reads an IPv4 packet; `None` if it is not TCP.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let (word, total) = (*packet.first()?, number(packet, 2)?);
        let begins = usize::from(word & 15) * 4;
        if word >> 4 != 4 || *packet.get(9)? != 6 {
            return None;
        }
        let tcp = packet.get(begins..usize::from(total))?;
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        let address = |at: usize, port: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(SocketAddrV4::new(Ipv4Addr::from(bytes), number(tcp, port)?))
        };
        let long = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            source: address(12, 0)?,
            destination: address(16, 2)?,
            sequence: long(4)?,
            acknowledged: long(8)?,
            flags: *tcp.get(13)?,
            window: number(tcp, 14)?,
            options: tcp.get(20..header)?.to_vec(),
            payload: tcp.get(header..)?.to_vec(),
        })
    }

    /// Encodes the packet. Options are padded with the end of the option list.
    pub fn packet(&self) -> Vec<u8> {
        let mut options = self.options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = 5 + options.len() / 4;
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledged.to_be_bytes());
        tcp.extend([(words as u8) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&options);
        tcp.extend(&self.payload);
        let mut pseudo = Vec::new();
        pseudo.extend(self.source.ip().octets());
        pseudo.extend(self.destination.ip().octets());
        pseudo.extend([0, 6]);
        pseudo.extend((tcp.len() as u16).to_be_bytes());
        pseudo.extend(&tcp);
        let sum = checksum(&pseudo);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        ipv4(*self.source.ip(), *self.destination.ip(), 0, &[], &tcp)
    }

    /// Returns the position and the length of metaproxy's option among the options.
    pub fn our_option(&self) -> Option<(usize, usize)> {
        let mut at = 0;
        while let Some(kind) = self.options.get(at) {
            match kind {
                0 => return None,
                1 => at += 1,
                kind => {
                    let length = usize::from(*self.options.get(at + 1)?);
                    let experiment = self.options.get(at + 2..at + 4);
                    if *kind == OURS.0 && experiment == Some(&OURS.1[..]) {
                        return (at + length <= self.options.len()).then_some((at, length));
                    }
                    at += length.max(2);
                }
            }
        }
        None
    }

    /// Returns the sequence number of the next segment.
    pub fn next_sequence(&self) -> u32 {
        let marks = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.sequence
            .wrapping_add(self.payload.len() as u32)
            .wrapping_add(marks)
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}
