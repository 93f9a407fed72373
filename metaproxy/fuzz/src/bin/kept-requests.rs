//! Sends a number of requests for credentials on one kept connection to the server in memory. `cargo xtask bench
//! counts` runs it under callgrind, which counts instructions and allocations.
#![allow(
    clippy::expect_used,
    reason = "a count of something else than these requests is worth nothing"
)]

use metaproxy_fuzz::server::TestServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const REQUEST: &[u8] =
    b"GET /latest/meta-data/iam/security-credentials/role-a HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n";

fn main() {
    let count = std::env::args().nth(1).and_then(|count| count.parse().ok());
    let count: usize = count.expect("usage: kept-requests COUNT");
    TestServer::new().serve(async |mut stream| {
        let mut answer = [0; 4096];
        for _ in 0..count {
            stream.write_all(REQUEST).await.expect("the request is sent");
            let length = stream.read(&mut answer).await.expect("the answer is read");
            let answer = answer.get(..length).unwrap_or_default();
            assert!(answer.starts_with(b"HTTP/1.1 200 OK") && answer.ends_with(b"}"));
        }
    });
}
