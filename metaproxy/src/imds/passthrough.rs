//! Passes requests of pods on to the node's metadata service. The service limits the requests of the whole node, and
//! one pod must not use up this limit for the others.

pub(super) mod body;
mod pod_limits;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::http::response::Parts;
use hyper::{Method, Response, StatusCode};
use thiserror::Error;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use self::body::{MAX_BODY, PassthroughBody};
use self::pod_limits::PodLimits;
use self::queue::Queue;
use super::path::NodePath;
use super::upstream::{Upstream, UpstreamError};
use crate::pods::PodUid;
use crate::telemetry::metrics::{TurnOutcome, Turns};

/// The maximum number of concurrent requests of all pods of the node. Further requests wait.
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 32;

/// The time between two requests of the node: 100 requests a second.
///
/// EC2 drops packets beyond 1,024 a second from each network interface to all link-local services together: metadata,
/// DNS, time (EC2 user guide, "Instance metadata and user data: query throttling", `linklocal_allowance_exceeded`).
/// On a kept connection, a request sends two packets: itself and an acknowledgement. 100 requests a second then take
/// a fifth of the limit. If the service closes each connection, a request sends five packets (with SYN, ACK and FIN),
/// and 100 requests a second take half of the limit. The rest is left to DNS.
const NODE_INTERVAL: Duration = Duration::from_millis(10);

/// The maximum number of requests of the node in one burst, for pods that start together. Together with the 100 of
/// the same second, they send at most 750 packets.
const NODE_BURST: u32 = 50;

/// The maximum length of a listing that is filtered, in bytes. Real ones have a few hundred bytes.
const MAX_LISTING: usize = 64 * 1024;

/// The right to one request: the pod's permit and the node's.
pub type Permits = [OwnedSemaphorePermit; 2];

/// The access of pods to the node's metadata service.
#[derive(Debug)]
pub struct Passthrough {
    upstream: Upstream,
    pod_limits: PodLimits,
    queue: Arc<Queue>,
    turns: Turns,
}

/// An answer of the node's metadata service.
#[derive(Debug)]
pub enum NodeAnswer {
    /// The unchanged answer of the node. Its body still streams.
    Streamed(Response<PassthroughBody>),
    /// The part of a listing that the pod may see.
    Listing {
        /// The head of the node's response.
        head: Parts,
        /// The entries, one in each line.
        visible: String,
    },
}

/// The limit that a request has waited for until its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// The pod's.
    Pod,
    /// The node's.
    Node,
}

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod => write!(
                f,
                "At the moment, this pod has more requests for the node's metadata than it may: {} at a time, {} a second. \
                 Ask less often.",
                pod_limits::MAX_CONCURRENT_REQUESTS,
                per_second(pod_limits::REQUEST_INTERVAL),
            ),
            Self::Node => write!(
                f,
                "At the moment, the pods of this node have more requests for the node's metadata than the node may send: {} at \
                 a time, {} a second. Try again.",
                MAX_CONCURRENT_REQUESTS,
                per_second(NODE_INTERVAL),
            ),
        }
    }
}

/// Why a request gets no answer from the node's metadata service.
#[derive(Debug, Error)]
pub enum PassthroughError {
    /// It waited for a limit until its deadline.
    #[error("{0}")]
    Busy(Busy),
    /// The answer is too long.
    #[error("The answer of the node's metadata service is too long to be passed on.")]
    TooLong,
    /// There is no answer.
    #[error("At the moment, {0}.")]
    Upstream(#[from] UpstreamError),
}

fn per_second(interval: Duration) -> u128 {
    Duration::from_secs(1).as_nanos() / interval.as_nanos().max(1)
}

impl Passthrough {
    /// Makes a pass-through to this metadata service.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            pod_limits: PodLimits::default(),
            queue: Arc::new(Queue::new(MAX_CONCURRENT_REQUESTS, NODE_INTERVAL, NODE_BURST)),
            turns: Turns::default(),
        }
    }

    /// Returns the numbers of requests that got their turn at once, after a wait, or not at all.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Fetches metadata of the node for a pod.
    ///
    /// # Errors
    /// Returns why there is no answer by the deadline.
    pub async fn pass(
        &self,
        uid: &PodUid,
        method: &Method,
        path: &NodePath,
        deadline: Instant,
    ) -> Result<NodeAnswer, PassthroughError> {
        let (response, permits) = self.fetch(uid, method, path, deadline).await?;
        Ok(streamed(response, permits))
    }

    /// Fetches a listing of the node's metadata for a pod, which sees the part that `visible` returns.
    ///
    /// # Errors
    /// Returns why there is no listing by the deadline.
    pub async fn list(
        &self,
        uid: &PodUid,
        path: &NodePath,
        deadline: Instant,
        visible: impl FnOnce(&str) -> String,
    ) -> Result<NodeAnswer, PassthroughError> {
        let (response, permits) = self.fetch(uid, &Method::GET, path, deadline).await?;
        if response.status() != StatusCode::OK {
            return Ok(streamed(response, permits));
        }
        let (head, body) = response.into_parts();
        let read = Limited::new(body, MAX_LISTING).collect();
        let body = tokio::time::timeout_at(deadline, read)
            .await
            .map_err(|_| UpstreamError::Slow)?
            .map_err(|_| PassthroughError::TooLong)?;
        let visible = visible(&String::from_utf8_lossy(&body.to_bytes()));
        Ok(NodeAnswer::Listing { head, visible })
    }

    async fn fetch(
        &self,
        uid: &PodUid,
        method: &Method,
        path: &NodePath,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Permits), PassthroughError> {
        let permits = self
            .permits(uid, deadline)
            .await
            .map_err(PassthroughError::Busy)?;
        let response = tokio::time::timeout_at(deadline, self.upstream.get(method, path))
            .await
            .map_err(|_| UpstreamError::Slow)??;
        let length = response.headers().get(CONTENT_LENGTH);
        let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if length.is_some_and(|length| length > MAX_BODY) {
            return Err(PassthroughError::TooLong);
        }
        Ok((response, permits))
    }

    /// Waits for the request's turn: first among the pod's own, then among those of all pods.
    ///
    /// # Errors
    /// Returns the limit that the request still waits for at the deadline.
    async fn permits(&self, uid: &PodUid, deadline: Instant) -> Result<Permits, Busy> {
        let mut late = Busy::Pod;
        let mut has_waited = false;
        let turn = async {
            let of_pod = self.pod_limits.turn(uid, &mut has_waited).await?;
            late = Busy::Node;
            let of_all = self.queue.turn(uid, &mut has_waited).await?;
            Some([of_pod, of_all])
        };
        let permits = tokio::time::timeout_at(deadline, turn).await;
        let outcome = match &permits {
            Ok(Some(_)) if !has_waited => TurnOutcome::Prompt,
            Ok(Some(_)) => TurnOutcome::Slowed,
            _ => TurnOutcome::GivenUp,
        };
        self.turns.ended(outcome);
        permits.ok().flatten().ok_or(late)
    }
}

fn streamed(response: Response<Incoming>, permits: Permits) -> NodeAnswer {
    NodeAnswer::Streamed(response.map(|body| PassthroughBody::new(body, permits)))
}

#[cfg(test)]
mod tests;
