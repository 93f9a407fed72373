//! Floods of connections, more than a listener can take.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::progress::{Pace, Progress};
use super::sockets::{Sender, drop_all, stream, with_address};
use super::wire::{SYN, Segment};
use super::{Connects, SynFlood};

/// The number of packets after which the counter is updated.
const REPORT_EVERY: u64 = 64;

/// Sends SYNs, each from another address and port.
pub fn syn(options: &SynFlood, progress: &Progress, end: Instant) -> Result<()> {
    let sender = Sender::new(None)?;
    let network = u32::from(options.source);
    let packets: Vec<Vec<u8>> = (0..16_384_u32)
        .map(|number| {
            let mixed = number.wrapping_mul(40_503);
            let address = Ipv4Addr::from(network + (mixed & 0xffff));
            let source = SocketAddrV4::new(address, 1024 + (number.wrapping_mul(7) % 60_000) as u16);
            let mut packet = Segment::new(source, options.listener, SYN);
            packet.sequence = mixed.wrapping_mul(69_069);
            packet.packet()
        })
        .collect();
    let mut pace = Pace::new(options.rate);
    let mut sent = 0;
    for packet in packets.iter().cycle() {
        if Instant::now() > end {
            break;
        }
        pace.wait();
        sender
            .send_packet(packet, *options.listener.ip())
            .context("cannot send")?;
        sent += 1;
        if sent == REPORT_EVERY {
            progress.add("sent", sent);
            sent = 0;
        }
    }
    Ok(())
}

/// Sends SYNs by `connect()`, and drops the answers.
pub fn half_open(options: &Connects, progress: &Progress, end: Instant) -> Result<()> {
    let mut held: VecDeque<OwnedFd> = VecDeque::new();
    let mut pace = Pace::new(options.rate);
    while Instant::now() < end {
        pace.wait();
        if held.len() >= options.hold {
            held.pop_front();
        }
        let socket = stream(&options.to)?;
        drop_all(&socket)?;
        progress.add("tried", 1);
        match start(&socket, options.to) {
            Ok(()) => {
                held.push_back(socket);
                progress.add("sent", 1);
            }
            // The programs refuse a connection beyond the pod's rate with this error.
            Err(error) if error.raw_os_error() == Some(libc::ENETUNREACH) => {}
            // All ports are in use until the oldest connections are closed.
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                held.drain(..held.len() / 2);
            }
            Err(error) => return Err(error).context("connect"),
        }
    }
    Ok(())
}

fn start(socket: &OwnedFd, to: SocketAddr) -> io::Result<()> {
    // SAFETY: takes no pointer.
    if unsafe { libc::fcntl(socket.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match with_address(libc::connect, socket, to) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(()),
        other => other,
    }
}

/// Connects, and resets the connection at once.
pub fn connect(options: &Connects, progress: &Progress, end: Instant) -> Result<()> {
    let rate = (options.rate / options.threads as u64).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.threads)
            .map(|_| scope.spawn(|| connect_and_reset(options.to, rate, progress, end)))
            .collect();
        for thread in threads {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a connecting thread panicked"))??;
        }
        Ok(())
    })
}

fn connect_and_reset(to: SocketAddr, rate: u64, progress: &Progress, end: Instant) -> Result<()> {
    let mut pace = Pace::new(rate);
    while Instant::now() < end {
        pace.wait();
        let stream = TcpStream::from(stream(&to)?);
        let linger = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&stream, sockopt::Linger, &linger)?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        let socket = OwnedFd::from(stream);
        // A refused connection counts as tried.
        let outcome = with_address(libc::connect, &socket, to);
        progress.add(if outcome.is_ok() { "connected" } else { "refused" }, 1);
        progress.add("tried", 1);
    }
    Ok(())
}

/// Connects and holds the connections; checks every 100 ms which are closed, and replaces them.
pub fn hold(options: &Connects, progress: &Progress, end: Instant) -> Result<()> {
    let mut held: Vec<TcpStream> = Vec::new();
    let mut pace = Pace::new(options.rate);
    let mut looked = Instant::now();
    while Instant::now() < end {
        if looked.elapsed() > Duration::from_millis(100) {
            held.retain(is_open);
            looked = Instant::now();
        }
        if held.len() >= options.hold {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        }
        pace.wait();
        let stream = TcpStream::from(stream(&options.to)?);
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        let socket = OwnedFd::from(stream);
        progress.add("tried", 1);
        if with_address(libc::connect, &socket, options.to).is_ok() {
            progress.add("connected", 1);
            let stream = TcpStream::from(socket);
            stream.set_nonblocking(true)?;
            held.push(stream);
        }
    }
    Ok(())
}

fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}
