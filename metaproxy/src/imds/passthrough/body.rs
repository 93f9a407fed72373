//! Passes the body of a node's answer on to a pod as it streams in, with a limit on its size and its time. Removes
//! the headers that concern only the agent and the node.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use thiserror::Error;
use tokio::time::Sleep;

use super::Permits;
use crate::imds::headers::{TOKEN, TOKEN_TTL};

/// The maximum length of a body that is passed on, in bytes. The longest real ones are lists of a few kilobytes.
pub const MAX_BODY: u64 = 1024 * 1024;

/// How long a whole body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Why a body is cut off. The connection to the pod is then closed, so that the pod does not take the part for a
/// complete body.
#[derive(Debug, Error)]
pub enum Cut {
    /// The connection to the node's metadata service failed.
    #[error(transparent)]
    Upstream(#[from] hyper::Error),
    /// The body is longer than announced or allowed.
    #[error("the node's metadata service sent more than {MAX_BODY} bytes")]
    TooLong,
    /// The body did not arrive in time.
    #[error("the node's metadata service did not send all of its answer in time")]
    Slow,
}

/// A body on its way to a pod.
#[derive(Debug)]
pub struct PassthroughBody {
    body: Incoming,
    left: u64,
    until: Pin<Box<Sleep>>,
    _permits: Permits,
}

impl PassthroughBody {
    /// Makes a body that holds its permits until it has been passed on.
    pub fn new(body: Incoming, permits: Permits) -> Self {
        Self {
            body,
            left: MAX_BODY,
            until: Box::pin(tokio::time::sleep(BODY_TIMEOUT)),
            _permits: permits,
        }
    }
}

impl Body for PassthroughBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        if self.until.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Cut::Slow)));
        }
        let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)) else {
            return Poll::Ready(None);
        };
        let frame = frame?;
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        match self.left.checked_sub(length) {
            Some(left) => self.left = left,
            None => return Poll::Ready(Some(Err(Cut::TooLong))),
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Removes the headers that concern only the agent and the node: hop-by-hop headers (RFC 9110, 7.6.1), cookies, and
/// all headers of the node's tokens.
pub fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.remove(TOKEN);
    headers.remove(TOKEN_TTL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_between_the_agent_and_the_node_are_removed() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Of-This-Hop"),
            ("x-of-this-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-authenticate", "Basic"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("set-cookie", "a=b"),
            ("x-aws-ec2-metadata-token", "node"),
            ("x-aws-ec2-metadata-token-ttl-seconds", "21600"),
            ("content-type", "text/plain"),
            ("last-modified", "Sun, 22 Nov 2026 05:20:00 GMT"),
            ("server", "EC2ws"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-type", "last-modified", "server"]);
    }
}
