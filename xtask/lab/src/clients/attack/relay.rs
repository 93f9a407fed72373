//! Relays packets, so that the client sees the listener's own sequence numbers and the listener sees the client's.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::Relay;
use super::progress::Progress;
use super::sockets::{Receiver, Sender, silence};
use super::wire::{ACK, SYN, Segment};

/// The ports that connections are forwarded from. Each port is bound, because the kernel resets connections to a port
/// for which it has no socket.
const PORTS: std::ops::Range<u16> = 47_000..47_500;

/// How long to wait for packets of one side before the other side is served.
const POLL_TIMEOUT: Duration = Duration::from_micros(200);

/// How a relay changes the options of the client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Options {
    /// Leaves the options unchanged
    AsIs,
    /// Removes metaproxy's option
    Removed,
    /// Claims another cgroup id in metaproxy's option
    Forged,
    /// Puts a short option of the same kind before metaproxy's option
    ShortBefore,
    /// Puts a short option of the same kind after metaproxy's option
    ShortBehind,
    /// Puts a full-length option with another cgroup id before metaproxy's option, and removes all other options
    ForgedBefore,
    /// Puts options of other experiments before metaproxy's option
    ForeignBefore,
    /// Puts the end of the option list before metaproxy's option
    EndBefore,
    /// Puts an option before metaproxy's option that is longer than the remaining bytes
    TooLongBefore,
    /// Puts an option with the length 0 before metaproxy's option
    EmptyBefore,
    /// Puts a truncated copy of metaproxy's option after it
    CutBehind,
}

struct Flow {
    client: SocketAddrV4,
    /// The link-layer header of the client's packets.
    link: Vec<u8>,
}

/// The forwarded connections, by the client's address and by the port that they are forwarded from.
struct Flows {
    ports: HashMap<SocketAddrV4, u16>,
    flows: HashMap<u16, Flow>,
    next: std::iter::Cycle<std::ops::Range<u16>>,
}

impl Flows {
    /// Returns the port that a client's connection is forwarded from. A new connection takes the next port.
    fn port_of(&mut self, client: SocketAddrV4, link: Vec<u8>) -> Option<u16> {
        if let Some(port) = self.ports.get(&client) {
            return Some(*port);
        }
        let port = self.next.next()?;
        if let Some(old) = self.flows.insert(port, Flow { client, link }) {
            self.ports.remove(&old.client);
        }
        self.ports.insert(client, port);
        Some(port)
    }
}

/// Relays until the time is up.
pub fn run(options: &Relay, progress: &Progress, end: Instant) -> Result<()> {
    let front = Receiver::at(&options.device).context("a packet socket")?;
    let back = Receiver::local().context("a raw socket")?;
    let sender = Sender::new(None)?;
    let mut silenced: Vec<OwnedFd> = PORTS
        .map(|port| silence(SocketAddrV4::new(options.own, port)))
        .collect::<std::io::Result<_>>()
        .context("cannot take the relay's ports")?;
    if *options.front.ip() == options.own {
        silenced.push(silence(options.front).context("cannot take the front's port")?);
    }
    // One thread serves both sides, so no wait for either may be long.
    for side in [&front, &back] {
        side.set_timeout(POLL_TIMEOUT)?;
    }
    progress.add("ready", 1);
    let mut flows = Flows {
        ports: HashMap::new(),
        flows: HashMap::new(),
        next: PORTS.cycle(),
    };
    let mut buffer = [0; 4096];
    while Instant::now() < end {
        if let Some((link, packet)) = front.next(&mut buffer)?
            && packet.destination == options.front
            && let Some(port) = flows.port_of(packet.source, link)
        {
            sender.send(&to_listener(packet, port, options, progress))?;
        }
        if let Some((_, packet)) = back.next(&mut buffer)?
            && packet.source == options.listener
            && let Some(flow) = flows.flows.get(&packet.destination.port())
        {
            front.answer(&flow.link, &to_client(packet, flow.client, options, progress))?;
        }
    }
    Ok(())
}

fn to_listener(mut packet: Segment, port: u16, options: &Relay, progress: &Progress) -> Segment {
    if packet.flags & (SYN | ACK) == SYN {
        progress.add("syns", 1);
    }
    if packet.our_option().is_some() {
        progress.add("options", 1);
    }
    packet.source = SocketAddrV4::new(options.own, port);
    packet.destination = options.listener;
    alter(&mut packet, options);
    packet
}

fn to_client(mut packet: Segment, client: SocketAddrV4, options: &Relay, progress: &Progress) -> Segment {
    if packet.flags & (SYN | ACK) == SYN | ACK {
        progress.add("handshakes", 1);
    }
    count_answer(&packet, &options.watch_for, progress);
    packet.source = options.front;
    packet.destination = client;
    packet
}

/// Counts an answer of the listener, and whether it contains a text.
pub fn count_answer(packet: &Segment, watch_for: &str, progress: &Progress) {
    if packet.payload.is_empty() {
        return;
    }
    progress.add("answers", 1);
    let text = String::from_utf8_lossy(&packet.payload);
    if text.contains(watch_for) {
        progress.add("watched", 1);
    }
}

/// Makes an option of kind 253 with this length, "MP", this cgroup id and invalid tags.
fn forged(length: u8, claim: u64) -> Vec<u8> {
    let mut option = vec![253, length, b'M', b'P'];
    option.extend(&claim.to_le_bytes()[..5]);
    option.resize(usize::from(length), 0x5a);
    option
}

fn alter(packet: &mut Segment, how: &Relay) {
    let Some((at, length)) = packet.our_option() else {
        return;
    };
    let ours = packet.options[at..at + length].to_vec();
    let mut others = [&packet.options[..at], &packet.options[at + length..]].concat();
    // The other options are the kernel's timestamps. Their padding is removed.
    while others.first() == Some(&1) {
        others.remove(0);
    }
    while others.last().is_some_and(|last| *last <= 1) && others.len() % 4 != 2 {
        others.pop();
    }
    packet.options = match how.options {
        Options::AsIs => return,
        Options::Removed => others,
        Options::Forged => {
            let mut changed = ours;
            changed[4..9].copy_from_slice(&how.claim.to_le_bytes()[..5]);
            [others, changed].concat()
        }
        Options::ShortBefore => [vec![253, 4, b'M', b'P'], ours].concat(),
        Options::ShortBehind => [ours, vec![253, 4, b'M', b'P']].concat(),
        Options::ForgedBefore => [forged(16, how.claim), ours].concat(),
        Options::ForeignBefore => [&[253, 6, b'X', b'Y', 0, 0, 254, 4, 0xf9, 0x89][..], &ours].concat(),
        Options::EndBefore => [&[0][..], &ours].concat(),
        Options::TooLongBefore => [&[77, 40][..], &ours].concat(),
        Options::EmptyBefore => [&[77, 0][..], &ours].concat(),
        Options::CutBehind => [&ours[..], &ours[..16]].concat(),
    };
}
