//! A command for the inside of a pod: clients that send requests as fast as they are answered, or connect as fast as
//! they can, and measure the times. All clients are one thread, which leaves the other processors to the server.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::site::processor_time;

/// The arguments of `bench-load`.
#[derive(Clone, Debug, Args)]
pub struct Load {
    /// The address to connect to
    #[arg(long)]
    pub to: SocketAddr,
    /// The path to request
    #[arg(long, default_value = "/")]
    pub path: String,
    /// The number of concurrent clients
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
    /// The number of requests or connections of each client, or 0 to run for --millis
    #[arg(long, default_value_t = 0)]
    pub count: usize,
    /// How long to run, in milliseconds; the first tenth is not counted
    #[arg(long, default_value_t = 0)]
    pub millis: u64,
    /// The operation that is counted
    #[arg(long, value_enum, default_value = "keep")]
    pub each: Each,
    /// Milliseconds to wait before each request, if there is one client
    #[arg(long, default_value_t = 0)]
    pub pause: u64,
}

/// An operation that is counted and timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Each {
    /// A request on a connection that stays open
    Keep,
    /// Connect, request, answer, close
    Connection,
    /// connect() alone; the close is not timed
    Connect,
}

/// The result of a load. Times are 0 if no operation succeeded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// The number of operations that succeeded.
    pub done: usize,
    /// The number of operations that failed.
    pub failed: usize,
    /// The time in which operations were counted, in seconds.
    pub seconds: f64,
    /// The part of the whole time in which the client used a processor. Near 1 the client limits the rate.
    pub busy: f64,
    /// The median in microseconds.
    pub p50: f64,
    /// The 99th percentile in microseconds.
    pub p99: f64,
    /// The longest time in microseconds.
    pub max: f64,
}

impl Outcome {
    /// Returns the number of operations in a second.
    pub fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    fn of(mut taken: Vec<Duration>, failed: usize, seconds: f64) -> Self {
        taken.sort_unstable();
        let at = |part: f64| {
            let index = (part * taken.len().saturating_sub(1) as f64).round() as usize;
            taken.get(index).map_or(0.0, |taken| taken.as_secs_f64() * 1e6)
        };
        Self {
            done: taken.len(),
            failed,
            seconds,
            busy: 0.0,
            p50: at(0.5),
            p99: at(0.99),
            max: at(1.0),
        }
    }
}

/// Runs the load, and prints its outcome.
///
/// # Errors
/// If the runtime cannot be started, or the processor time cannot be read.
pub fn run(load: &Load) -> Result<()> {
    let start = Instant::now();
    let mut outcome = if load.clients == 1 {
        load.alone()
    } else {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the asynchronous runtime")?
            .block_on(load.together())
    };
    outcome.busy = processor_time(std::process::id())?.as_secs_f64() / start.elapsed().as_secs_f64();
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// When to begin counting, and when to stop.
#[derive(Clone, Copy)]
struct Span {
    counts_from: Instant,
    end: Option<Instant>,
}

impl Load {
    fn request(&self) -> Vec<u8> {
        format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", self.path, self.to.ip()).into_bytes()
    }

    fn span(&self) -> Span {
        let (start, whole) = (Instant::now(), Duration::from_millis(self.millis));
        Span {
            counts_from: start + whole / 10,
            end: (self.count == 0).then(|| start + whole),
        }
    }

    fn goes_on(&self, span: Span, number: usize) -> bool {
        span.end.map_or(number < self.count, |end| Instant::now() < end)
    }

    /// Runs one client without an asynchronous runtime, which would take time of its own.
    fn alone(&self) -> Outcome {
        let (request, span) = (self.request(), self.span());
        let (mut taken, mut failed, mut open) = (Vec::new(), 0, None);
        let mut number = 0;
        while self.goes_on(span, number) {
            if self.pause > 0 {
                std::thread::sleep(Duration::from_millis(self.pause));
            }
            let start = Instant::now();
            match self.once(&request, &mut open) {
                Ok(spent) if start >= span.counts_from => taken.push(spent),
                Ok(_) => {}
                Err(_) => failed += 1,
            }
            number += 1;
        }
        Outcome::of(taken, failed, span.counts_from.elapsed().as_secs_f64())
    }

    fn once(&self, request: &[u8], open: &mut Option<TcpStream>) -> io::Result<Duration> {
        let start = Instant::now();
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.to)?,
        };
        if self.each == Each::Connect {
            return Ok(start.elapsed());
        }
        stream.set_nodelay(true)?;
        stream.write_all(request)?;
        let mut answer = Answer::default();
        let mut buffer = [0; 8192];
        while !answer.is_whole()? {
            let read = stream.read(&mut buffer)?;
            answer.more(&buffer[..read])?;
        }
        match self.each {
            Each::Keep => *open = Some(stream),
            Each::Connection | Each::Connect => drop(stream),
        }
        Ok(start.elapsed())
    }

    /// Runs all clients on this thread.
    async fn together(&self) -> Outcome {
        let (request, span) = (self.request(), self.span());
        let local = tokio::task::LocalSet::new();
        let clients: Vec<_> = (0..self.clients)
            .map(|_| local.spawn_local(self.clone().client(request.clone(), span)))
            .collect();
        let (mut taken, mut failed) = (Vec::new(), 0);
        local
            .run_until(async {
                for client in clients {
                    match client.await {
                        Ok((own, own_failed)) => {
                            taken.extend(own);
                            failed += own_failed;
                        }
                        Err(_) => failed += 1,
                    }
                }
            })
            .await;
        Outcome::of(taken, failed, span.counts_from.elapsed().as_secs_f64())
    }

    async fn client(self, request: Vec<u8>, span: Span) -> (Vec<Duration>, usize) {
        let (mut taken, mut failed, mut open) = (Vec::new(), 0, None);
        let (mut answer, mut buffer) = (Answer::default(), vec![0; 8192]);
        let mut number = 0;
        while self.goes_on(span, number) {
            let start = Instant::now();
            match self.ask(&request, &mut open, &mut answer, &mut buffer).await {
                Ok(()) if start >= span.counts_from => taken.push(start.elapsed()),
                Ok(()) => {}
                Err(_) => {
                    failed += 1;
                    open = None;
                }
            }
            number += 1;
        }
        (taken, failed)
    }

    async fn ask(
        &self,
        request: &[u8],
        open: &mut Option<tokio::net::TcpStream>,
        answer: &mut Answer,
        buffer: &mut [u8],
    ) -> io::Result<()> {
        let mut stream = match open.take() {
            Some(stream) => stream,
            None => {
                let stream = tokio::net::TcpStream::connect(self.to).await?;
                stream.set_nodelay(true)?;
                stream
            }
        };
        if self.each == Each::Connect {
            return Ok(());
        }
        stream.write_all(request).await?;
        answer.clear();
        while !answer.is_whole()? {
            let read = stream.read(buffer).await?;
            answer.more(&buffer[..read])?;
        }
        if self.each == Each::Keep {
            *open = Some(stream);
        }
        Ok(())
    }
}

/// A response that is being received. Only its status and its length are checked.
#[derive(Debug, Default)]
struct Answer {
    bytes: Vec<u8>,
    whole: Option<usize>,
}

impl Answer {
    fn clear(&mut self) {
        self.bytes.clear();
        self.whole = None;
    }

    fn more(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn is_whole(&mut self) -> io::Result<bool> {
        if self.whole.is_none()
            && let Some(head) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n")
        {
            let text = std::str::from_utf8(&self.bytes[..head]).map_err(io::Error::other)?;
            if !text.starts_with("HTTP/1.1 200") {
                return Err(io::Error::other("not 200"));
            }
            let length = text
                .lines()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .and_then(|(_, length)| length.trim().parse::<usize>().ok());
            let length = length.ok_or_else(|| io::Error::other("a response without content-length"))?;
            self.whole = Some(head + 4 + length);
        }
        Ok(self.whole.is_some_and(|whole| self.bytes.len() >= whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_all_of_its_body_is_there() {
        let mut answer = Answer::default();
        for piece in ["HTTP/1.1 200 OK\r\ncontent-", "length: 5\r\n\r\nab", "cde"] {
            assert!(!answer.is_whole().unwrap());
            answer.more(piece.as_bytes()).unwrap();
        }
        assert!(answer.is_whole().unwrap());
    }

    #[test]
    fn anything_but_success_is_a_failure() {
        let mut answer = Answer::default();
        answer
            .more(b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n")
            .unwrap();
        assert!(answer.is_whole().is_err());
        assert!(Answer::default().more(b"").is_err(), "the end of the connection");
    }

    #[test]
    fn percentiles_are_those_of_what_was_timed() {
        let taken = (1..=100).map(Duration::from_millis).collect();
        let outcome = Outcome::of(taken, 1, 2.0);
        assert_eq!((outcome.done, outcome.failed, outcome.rate()), (100, 1, 50.0));
        assert_eq!((outcome.p99, outcome.max), (99_000.0, 100_000.0));
    }
}
