//! `redirect-proxy` runs in a pod as a transparent proxy.

use std::io::{self, Write as _};
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use clap::Args;

/// The arguments of `redirect-proxy`. It works like the proxies of service meshes: it accepts connections that
/// iptables redirects to it, and connects to their original destination. Its own connections have a mark, so that
/// they are not redirected.
#[derive(Clone, Debug, Args)]
pub struct RedirectProxy {
    /// The port to listen on
    #[arg(long, default_value_t = 15_001)]
    port: u16,
    /// The SO_MARK of its own connections
    #[arg(long, default_value_t = 7)]
    mark: u32,
}

/// Runs the proxy until it is killed; prints `listening` when it listens.
pub fn run(proxy: &RedirectProxy) -> Result<()> {
    let listener = std::net::TcpListener::bind(("0.0.0.0", proxy.port)).context("cannot listen")?;
    println!("listening");
    io::stdout().flush()?;
    for client in listener.incoming().filter_map(io::Result::ok) {
        let mark = proxy.mark;
        std::thread::spawn(move || relay(&client, mark));
    }
    Ok(())
}

fn relay(client: &TcpStream, mark: u32) -> Result<()> {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, sockopt};
    let to = socket::getsockopt(client, sockopt::OriginalDst).context("SO_ORIGINAL_DST")?;
    let server = socket::socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    socket::setsockopt(&server, sockopt::Mark, &mark)?;
    socket::connect(server.as_raw_fd(), &socket::SockaddrIn::from(to))?;
    let server = TcpStream::from(server);
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = io::copy(&mut from_client, &mut to_server);
            let _ = to_server.shutdown(std::net::Shutdown::Write);
        });
        let (mut from_server, mut to_client) = (&server, client);
        let _ = io::copy(&mut from_server, &mut to_client);
        let _ = client.shutdown(std::net::Shutdown::Both);
    });
    Ok(())
}
