//! Connections to the listener that its own client answers: nothing of them ever reaches the listener.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::processes::Processes;
use super::progress::{Pace, Progress};
use super::sockets::{Receiver, Sender, stream, with_address};
use super::wire::{ACK, SYN, Segment};
use super::{InNamespace, Raw, privileges};
use crate::netns::ip;

/// How long a connection may wait for its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(100);

/// How often the connecting processes are looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Connects and accepts, both ends here, with the listener's and the source's address on `lo`.
pub fn in_namespace(options: &InNamespace, descriptors: usize, end: Instant) -> Result<Processes> {
    if !options.here {
        privileges::enter_own_namespaces()?;
    }
    ip(&["link", "set", "lo", "up"])?;
    let source = options.source.map(|source| source.ip());
    for address in [Some(options.listener.ip()), source].into_iter().flatten() {
        // In the pod's own namespace its address is there already.
        if !(options.here && Some(address) == source) {
            add_to_loopback(address)?;
        }
    }
    let listener = TcpListener::bind(options.listener).context("cannot listen in the listener's place")?;
    let hold = options
        .source
        .map_or(options.hold, |_| options.hold.min(usize::from(options.ports)));
    // Each connection takes two descriptors.
    let count = (hold * 2).div_ceil(descriptors);
    let share = Share {
        count,
        hold: (hold / count).max(1),
        rate: options.rate / count as u64,
    };
    Processes::start(count, |number, established| {
        connect_and_accept(options, &listener, &share, number, established, end)
    })
}

/// What each of several processes does.
struct Share {
    count: usize,
    hold: usize,
    rate: u64,
}

fn add_to_loopback(address: IpAddr) -> Result<()> {
    let shown = address.to_string();
    let mut words = vec!["address", "add", &shown, "dev", "lo"];
    if address.is_ipv6() {
        words.push("nodad");
    }
    ip(&words)
}

fn connect_and_accept(
    options: &InNamespace,
    listener: &TcpListener,
    share: &Share,
    first: usize,
    established: &AtomicU64,
    end: Instant,
) -> Result<()> {
    let mut pace = Pace::new(share.rate);
    let mut held: VecDeque<(TcpStream, TcpStream)> = VecDeque::new();
    let mut number = 0;
    while Instant::now() < end {
        pace.wait();
        if held.len() >= share.hold
            && let Some((client, _server)) = held.pop_front()
        {
            reset(&client)?;
        }
        let socket = stream(&options.listener)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        if let Some(mut source) = options.source {
            // Every port is of one process.
            let own = usize::from(options.ports) / share.count;
            let port = first + share.count * (number % own);
            source.set_port(source.port() + port as u16);
            with_address(libc::bind, &socket, source).with_context(|| format!("bind {source}"))?;
        }
        match with_address(libc::connect, &socket, options.listener) {
            // As a connection is refused that comes too fast.
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => continue,
            result => result.context("connect to oneself")?,
        }
        // This one, or one of another process, which takes this one in turn.
        let (server, _) = listener.accept().context("accept from oneself")?;
        held.push_back((TcpStream::from(socket), server));
        number += 1;
        established.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn reset(stream: &TcpStream) -> Result<()> {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(stream, sockopt::Linger, &linger)?)
}

/// Connects from 127.0.0.0/8 by `lo`; [`answer`] is to answer.
pub fn raw(options: &Raw, descriptors: usize, end: Instant) -> Result<Processes> {
    let count = options.hold.div_ceil(descriptors);
    let share = Share {
        count,
        hold: options.hold / count,
        rate: options.rate / count as u64,
    };
    Processes::start(count, |first, _| {
        let mut pace = Pace::new(share.rate);
        let mut held: VecDeque<OwnedFd> = VecDeque::new();
        let mut number = first;
        while Instant::now() < end {
            pace.wait();
            if held.len() >= share.hold {
                held.pop_front();
            }
            held.push_back(connect_from_loopback(options.listener, number)?);
            number += share.count;
        }
        Ok(())
    })
}

/// From one of 65,000 addresses, so that ports never run out.
fn connect_from_loopback(listener: SocketAddrV4, number: usize) -> Result<OwnedFd> {
    let socket = stream(&listener.into())?;
    setsockopt(&socket, sockopt::BindToDevice, &"lo".into()).context("SO_BINDTODEVICE")?;
    let source = Ipv4Addr::from(0x7f01_0000 + (number % 65_000) as u32 + 1);
    with_address(libc::bind, &socket, SocketAddr::from((source, 0))).context("bind")?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let socket = OwnedFd::from(stream);
    match with_address(libc::connect, &socket, listener.into()) {
        // Not answered in time; or refused, as it came too fast.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::ENETUNREACH)) => {
            Ok(socket)
        }
        Err(error) => Err(error).context("connect"),
        _ => Ok(socket),
    }
}

/// Answers every connection to the listener by a raw socket, and counts what becomes of them.
pub fn answer(
    listener: SocketAddrV4,
    processes: &Processes,
    progress: &Progress,
    end: Instant,
) -> Result<()> {
    let receiver = Receiver::at("lo").context("a packet socket")?;
    let sender = Sender::new(Some("lo")).context("a raw socket")?;
    let mut buffer = [0; 4096];
    let mut watched = Instant::now();
    while Instant::now() < end {
        if watched.elapsed() > WATCH_INTERVAL {
            processes.assert_run()?;
            watched = Instant::now();
        }
        let Some((_, packet)) = receiver.next(&mut buffer)? else {
            continue;
        };
        if packet.destination != listener {
            continue;
        }
        if packet.flags == SYN {
            let mut answer = Segment::new(listener, packet.source, SYN | ACK);
            answer.sequence = packet.sequence ^ 0x5555_5555;
            answer.acknowledged = packet.next_sequence();
            sender.send(&answer)?;
        } else if packet.flags == ACK && packet.payload.is_empty() {
            // The client's socket has taken the answer.
            progress.add("established", 1);
        }
    }
    Ok(())
}
