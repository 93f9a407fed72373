//! The server that the agent is compared with: plain hyper, which sends the same bytes to every client.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use clap::Args;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// The arguments of `bench-bare` and `bench-null`.
#[derive(Clone, Debug, Args)]
pub struct Bare {
    /// The address to listen on
    #[arg(long)]
    listen: SocketAddr,
    /// A file that contains a response of another server, head and body
    #[arg(long)]
    answer: PathBuf,
}

impl Bare {
    /// Returns the address to listen on.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Returns the recorded response.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn recorded(&self) -> Result<Vec<u8>> {
        std::fs::read(&self.answer).with_context(|| format!("cannot read {}", self.answer.display()))
    }
}

/// Serves until it is killed.
///
/// # Errors
/// If the response is not valid, or it cannot listen or accept.
pub fn run(bare: &Bare) -> Result<()> {
    let recorded = bare.recorded()?;
    let (headers, body) = parse(&recorded).context("the recorded response is not valid")?;
    let processors = std::thread::available_parallelism()?.get();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        // The agent has at most four worker threads as well.
        .worker_threads(processors.min(4))
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    runtime.block_on(async {
        let listener = TcpListener::bind(bare.listen).await.context("cannot listen")?;
        loop {
            let (stream, _) = listener.accept().await.context("cannot accept")?;
            let _ = stream.set_nodelay(true);
            let (headers, body) = (headers.clone(), body.clone());
            tokio::spawn(async move {
                let service = service_fn(move |_: Request<Incoming>| {
                    let mut response = Response::new(Full::new(body.clone()));
                    response.headers_mut().clone_from(&headers);
                    async move { Ok::<_, Infallible>(response) }
                });
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    })
}

/// Returns the headers, except for those that hyper adds by itself, and the body.
pub fn parse(recorded: &[u8]) -> Result<(HeaderMap, Bytes)> {
    let end = recorded
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("it has no head")?;
    let mut headers = HeaderMap::new();
    for line in std::str::from_utf8(&recorded[..end])?.lines().skip(1) {
        let (name, value) = line.split_once(':').context("a line of the head is no header")?;
        let name = HeaderName::from_bytes(name.as_bytes())?;
        if name != "date" && name != "content-length" {
            headers.insert(name, HeaderValue::from_str(value.trim())?);
        }
    }
    Ok((headers, Bytes::copy_from_slice(&recorded[end + 4..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hyper_adds_by_itself_is_left_to_it() {
        let (headers, body) = parse(b"HTTP/1.1 200 OK\r\ndate: x\r\nserver: EC2ws\r\n\r\nabc").unwrap();
        assert_eq!((headers.len(), &body[..]), (1, &b"abc"[..]));
        assert!(parse(b"HTTP/1.1 200 OK").is_err());
    }
}
