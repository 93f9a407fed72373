//! Connections to the listener that the client answers itself, so that none of their packets reaches the listener.

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

/// How often the connecting processes are checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Connects and accepts in this process, with the listener's and the source's address on `lo`.
pub fn in_namespace(options: &InNamespace, descriptors: usize, end: Instant) -> Result<Processes> {
    if !options.here {
        privileges::enter_own_namespaces()?;
    }
    ip(&["link", "set", "lo", "up"])?;
    let source = options.source.map(|source| source.ip());
    for address in [Some(options.listener.ip()), source].into_iter().flatten() {
        // The pod's own namespace has the address already.
        if !(options.here && Some(address) == source) {
            add_to_loopback(address)?;
        }
    }
    let listener = TcpListener::bind(options.listener).context("cannot listen on the listener's address")?;
    let hold = options
        .source
        .map_or(options.hold, |_| options.hold.min(usize::from(options.ports)));
    // Each connection needs two descriptors, one for each end.
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

/// The share of the attack that each process does, and the number of processes.
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
            // No two processes use the same port.
            let own = usize::from(options.ports) / share.count;
            let port = first + share.count * (number % own);
            source.set_port(source.port() + port as u16);
            with_address(libc::bind, &socket, source).with_context(|| format!("bind {source}"))?;
        }
        match with_address(libc::connect, &socket, options.listener) {
            // The programs refuse a connection beyond the pod's rate with this error.
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => continue,
            result => result.context("cannot connect to the own listener")?,
        }
        // It may be the connection of another process, which then accepts the connection of this one.
        let (server, _) = listener.accept().context("cannot accept on the own listener")?;
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

/// Connects from 127.0.0.0/8 through `lo`. [`answer`] answers these connections.
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

/// Connects from one of 65,000 addresses, so that ports never run out.
fn connect_from_loopback(listener: SocketAddrV4, number: usize) -> Result<OwnedFd> {
    let socket = stream(&listener.into())?;
    setsockopt(&socket, sockopt::BindToDevice, &"lo".into()).context("SO_BINDTODEVICE")?;
    let source = Ipv4Addr::from(0x7f01_0000 + (number % 65_000) as u32 + 1);
    with_address(libc::bind, &socket, SocketAddr::from((source, 0))).context("bind")?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    let socket = OwnedFd::from(stream);
    match with_address(libc::connect, &socket, listener.into()) {
        // The connection was not answered in time, or was beyond the pod's rate.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::ENETUNREACH)) => {
            Ok(socket)
        }
        Err(error) => Err(error).context("connect"),
        _ => Ok(socket),
    }
}

/// Answers every connection to the listener by a raw socket, and counts the outcomes.
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
            // The client's socket has accepted the answer.
            progress.add("established", 1);
        }
    }
    Ok(())
}
