//! Commands for the inside of a pod: one prints a response as it was received, the other holds idle connections.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

/// The arguments of `bench-record` and `bench-hold`.
#[derive(Clone, Debug, Args)]
pub struct Hold {
    /// The address to connect to
    #[arg(long)]
    to: SocketAddr,
    /// The path to request
    #[arg(long)]
    path: String,
    /// The number of connections
    #[arg(long, default_value_t = 1)]
    clients: usize,
}

/// Prints the response to one request, head and body.
///
/// # Errors
/// If there is no response.
pub fn record(hold: &Hold) -> Result<()> {
    let mut stream = TcpStream::connect(hold.to).context("cannot connect")?;
    write!(
        stream,
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
        hold.path,
        hold.to.ip()
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    // The `Connection` header is left out, because servers that repeat the response keep their connections open.
    let text = String::from_utf8(answer).context("the response is not text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("the response has no head")?;
    let head: Vec<&str> = head
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    print!("{}\r\n\r\n{body}", head.join("\r\n"));
    Ok(())
}

/// Sends one request over each connection, and holds the connections until it is killed.
///
/// # Errors
/// If a request is not answered.
pub fn hold(hold: &Hold) -> Result<()> {
    let (_, most) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, most, most)?;
    let mut open = Vec::new();
    let mut buffer = [0; 8192];
    for _ in 0..hold.clients {
        let mut stream = TcpStream::connect(hold.to).context("cannot connect")?;
        write!(stream, "GET {} HTTP/1.1\r\nHost: x\r\n\r\n", hold.path)?;
        anyhow::ensure!(stream.read(&mut buffer)? > 0, "a connection was closed");
        open.push(stream);
    }
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}
