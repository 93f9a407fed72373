//! For the inside of a pod: one answer as it comes over the wire, and connections that are kept and say nothing.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;

/// What to ask.
#[derive(Clone, Debug, Args)]
pub struct Hold {
    /// Where
    #[arg(long)]
    to: SocketAddr,
    /// What for
    #[arg(long)]
    path: String,
    /// How many connections
    #[arg(long, default_value_t = 1)]
    clients: usize,
}

/// Prints the answer, head and body.
///
/// # Errors
/// Where there is none.
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
    // What it says of its end is not part of what others are to repeat.
    let text = String::from_utf8(answer).context("an answer of text")?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
    let head: Vec<&str> = head
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .collect();
    print!("{}\r\n\r\n{body}", head.join("\r\n"));
    Ok(())
}

/// Asks once over each connection, and holds them until it is killed.
///
/// # Errors
/// Where one of them is not answered.
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
