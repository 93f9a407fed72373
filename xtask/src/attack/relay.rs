//! A relay of packets: the client sees the listener's own sequence numbers, and the listener sees the client's.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use super::Relay;
use super::progress::Progress;
use super::wire::{ACK, Receiver, SYN, Segment, Sender, silence};

/// Ports to pass connections on from. Each is taken, so that the kernel does not reset what it knows nothing of.
const PORTS: std::ops::Range<u16> = 47_000..47_500;

/// What a relay does to the options of the client's packets.
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

/// Relays until its time is up.
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
    // One thread serves both sides: neither may wait for long.
    for side in [&front, &back] {
        side.set_timeout(Duration::from_micros(200))?;
    }
    progress.add("ready", 1);
    let mut ports: HashMap<SocketAddrV4, u16> = HashMap::new();
    let mut flows: HashMap<u16, Flow> = HashMap::new();
    let mut buffer = [0; 4096];
    let mut next = PORTS.cycle();
    while Instant::now() < end {
        if let Some((link, mut packet)) = front.next(&mut buffer)?
            && packet.destination == options.front
        {
            let client = packet.source;
            if packet.flags & (SYN | ACK) == SYN {
                progress.add("syns", 1);
            }
            let is_new = packet.flags & (SYN | ACK) == SYN && !ports.contains_key(&client);
            if is_new && let Some(port) = next.next() {
                if let Some(old) = flows.insert(port, Flow { client, link }) {
                    ports.remove(&old.client);
                }
                ports.insert(client, port);
            }
            if let Some(port) = ports.get(&client) {
                if packet.our_option().is_some() {
                    progress.add("options", 1);
                }
                packet.source = SocketAddrV4::new(options.own, *port);
                packet.destination = options.listener;
                alter(&mut packet, options);
                sender.send(&packet)?;
            }
        }
        if let Some((_, mut packet)) = back.next(&mut buffer)?
            && packet.source == options.listener
            && let Some(flow) = flows.get(&packet.destination.port())
        {
            if packet.flags & (SYN | ACK) == SYN | ACK {
                progress.add("handshakes", 1);
            }
            count_answer(&packet, &options.watch_for, progress);
            packet.source = options.front;
            packet.destination = flow.client;
            front.answer(&flow.link, &packet)?;
        }
    }
    Ok(())
}

/// Counts an answer of the listener, and whether it has a text in it.
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

/// Kind 253, this length, "MP", this cgroup id; tags of no key.
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
    // The kernel's timestamps, without what only pads.
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
