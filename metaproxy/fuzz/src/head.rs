//! Sends the bytes of a connection from a known client to the real HTTP server.

use std::sync::LazyLock;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::server::{SECRET, TestServer};

static SERVER: LazyLock<TestServer> = LazyLock::new(TestServer::new);

/// Checks that every answer is HTTP, and that it has no secret if a single request says that it came through a proxy.
pub fn head(data: &[u8]) {
    let answer = SERVER.serve(async |mut stream| {
        let _ = stream.write_all(data).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        answer
    });
    let asked = String::from_utf8_lossy(data).to_ascii_lowercase();
    let (first, rest) = asked.split_once("\r\n\r\n").unwrap_or((&asked, ""));
    let was_forwarded = first
        .split("\r\n")
        .any(|line| line.starts_with("x-forwarded-for:"));
    if was_forwarded && rest.is_empty() {
        assert!(!String::from_utf8_lossy(&answer).contains(SECRET), "{asked:?}");
    }
    if !answer.is_empty() {
        assert!(
            answer.starts_with(b"HTTP/1."),
            "{:?}",
            String::from_utf8_lossy(&answer)
        );
    }
}
