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

/// The ports that connections are passed on from. Each is bound, so that the kernel does not reset connections for
/// which it has no socket.
const PORTS: std::ops::Range<u16> = 47_000..47_500;

/// How long a wait for one side may keep packets of the other waiting.
const POLL_TIMEOUT: Duration = Duration::from_micros(200);

/// How a relay changes the options of the client's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Options {
    /// Nothing
    AsIs,
    /// Removes ours
    Removed,
    /// Claims another cgroup id in ours
    Forged,
    /// Puts a short one of our kind before ours
    ShortBefore,
    /// Puts a short one of our kind behind ours
    ShortBehind,
    /// Puts one of full length with another cgroup id in front, in place of every other option
    ForgedBefore,
    /// Puts options of other experiments before ours
    ForeignBefore,
    /// Puts the end of the list before ours
    EndBefore,
    /// Puts an option before ours that is longer than what is left
    TooLongBefore,
    /// Puts an option with the length 0 before ours
    EmptyBefore,
    /// Repeats ours behind it, cut off
    CutBehind,
}

struct Flow {
    client: SocketAddrV4,
    /// What precedes the client's packets.
    link: Vec<u8>,
}

/// Connections that are passed on, by the client's address and by the port that stands for that.
struct Flows {
    ports: HashMap<SocketAddrV4, u16>,
    flows: HashMap<u16, Flow>,
    next: std::iter::Cycle<std::ops::Range<u16>>,
}

impl Flows {
    /// Returns the port that stands for a client's address.
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

/// Makes an option of kind 253 with this length, "MP" and this cgroup id, and with tags that no key has made.
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
    // The kernel's timestamps, without padding.
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
