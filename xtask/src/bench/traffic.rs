//! Sends and receives traffic that has nothing to do with metadata: a stream, small packets, and round trips.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// A kind of traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// One TCP stream, as fast as possible
    Bulk,
    /// UDP packets of 64 bytes, as fast as possible
    Small,
    /// One byte there and one back, over TCP
    PingPong,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Bulk, Self::Small, Self::PingPong];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bulk => "bulk",
            Self::Small => "small",
            Self::PingPong => "ping-pong",
        }
    }

    pub fn what(self) -> &'static str {
        match self {
            Self::Bulk => "a TCP stream",
            Self::Small => "UDP packets of 64 bytes",
            Self::PingPong => "a byte there and back over TCP",
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Gbit/s",
            Self::Small => "1000/s",
            Self::PingPong => "µs",
        }
    }

    /// Returns whether the value is a rate, so that a higher value is better.
    pub fn is_rate(self) -> bool {
        self != Self::PingPong
    }
}

/// The arguments of `bench-sink`.
#[derive(Clone, Debug, Args)]
pub struct Sink {
    #[arg(long)]
    listen: SocketAddr,
}

/// The arguments of `bench-send`.
#[derive(Clone, Debug, Args)]
pub struct Send {
    #[arg(long)]
    to: SocketAddr,
    #[arg(long, value_enum)]
    kind: Kind,
    #[arg(long)]
    millis: u64,
}

/// The result of sending.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The value in [`Kind::unit`].
    pub value: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Receives everything until it is killed. The first byte of a stream determines whether its bytes are sent back.
///
/// # Errors
/// If it cannot listen.
pub fn sink(sink: &Sink) -> Result<()> {
    // Packets that are not read are dropped, which costs the sender nothing.
    let _packets = UdpSocket::bind(sink.listen).context("cannot listen")?;
    let streams = TcpListener::bind(sink.listen).context("cannot listen")?;
    for stream in streams.incoming() {
        let Ok(mut stream) = stream else { continue };
        std::thread::spawn(move || {
            stream.set_nodelay(true)?;
            let mut buffer = vec![0; 256 * 1024];
            let mut first = [0];
            stream.read_exact(&mut first)?;
            if first == *b"p" {
                stream.write_all(&first)?;
            }
            loop {
                let read = stream.read(&mut buffer)?;
                if read == 0 {
                    return Ok::<_, std::io::Error>(());
                }
                if first == *b"p" {
                    stream.write_all(&buffer[..read])?;
                }
            }
        });
    }
    Ok(())
}

/// Sends, and prints the measured value.
///
/// # Errors
/// If a socket operation fails.
pub fn send(send: &Send) -> Result<()> {
    let (whole, start) = (Duration::from_millis(send.millis), Instant::now());
    let value = match send.kind {
        Kind::Bulk => bulk(send.to, whole)?,
        Kind::Small => small(send.to, whole)?,
        Kind::PingPong => ping_pong(send.to, whole)?,
    };
    let seconds = start.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&Measured { value, seconds })?);
    Ok(())
}

fn bulk(to: SocketAddr, whole: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    let (bytes, start, mut sent) = (vec![b'b'; 256 * 1024], Instant::now(), 0);
    while start.elapsed() < whole {
        sent += stream.write(&bytes)?;
    }
    Ok(sent as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

fn small(to: SocketAddr, whole: Duration) -> Result<f64> {
    let socket = UdpSocket::bind(("0.0.0.0", 0))?;
    socket.connect(to)?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < whole {
        match socket.send(&[b's'; 64]) {
            Ok(_) => sent += 1,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64() / 1e3)
}

/// Returns the median time of a round trip, in microseconds.
fn ping_pong(to: SocketAddr, whole: Duration) -> Result<f64> {
    let mut stream = TcpStream::connect(to)?;
    stream.set_nodelay(true)?;
    let (start, mut taken, mut byte) = (Instant::now(), Vec::new(), *b"p");
    while start.elapsed() < whole {
        let sent = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        taken.push(sent.elapsed());
    }
    taken.sort_unstable();
    let middle = taken.get(taken.len() / 2).context("no answer was received")?;
    Ok(middle.as_secs_f64() * 1e6)
}
