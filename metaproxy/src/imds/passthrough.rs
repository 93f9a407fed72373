//! The way of pods to the node's metadata service. It is narrow: the service limits what the whole node may ask, and one
//! pod must not take that from the others.

pub(super) mod body;
mod pod_limits;
mod queue;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::CONTENT_LENGTH;
use hyper::{Method, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tracing::debug;

use self::body::MAX_BODY;
use self::pod_limits::PodLimits;
use self::queue::Queue;
use super::answer::{self, Answer};
use super::log_fields::LoggedPath;
use super::path::NodePath;
use super::upstream::{Upstream, UpstreamError};
use crate::pods::PodUid;
use crate::telemetry::metrics::{TurnOutcome, Turns};

/// Requests under way at a time, of all pods of the node; more wait.
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 32;

/// From one request of the node to the next: 100 requests a second.
///
/// EC2 drops packets beyond 1,024 a second for each network interface to all link-local services together: metadata, DNS,
/// time (EC2 user guide, "Instance metadata and user data: query throttling", `linklocal_allowance_exceeded`). On a kept
/// connection a request sends two packets, itself and an acknowledgement: a fifth of that. If the service closes each
/// connection, it sends five (with SYN, ACK and FIN): a half. The rest is left to DNS.
const NODE_INTERVAL: Duration = Duration::from_millis(10);

/// Requests of the node at once, for pods that start together: with the 100 of the same second at most 750 packets.
const NODE_BURST: u32 = 50;

/// Longest list that is read, to leave something out of it; real ones have some hundred bytes.
const MAX_LIST: usize = 64 * 1024;

/// A permits on the way, of the pod's and of all.
pub type Permits = [OwnedSemaphorePermit; 2];

/// The way to the node's metadata service.
#[derive(Debug)]
pub struct Passthrough {
    upstream: Upstream,
    pod_limits: PodLimits,
    queue: Arc<Queue>,
    turns: Turns,
}

/// Whose limit a request has waited for in vain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Late {
    Pod,
    Node,
}

impl Late {
    fn sentence(self) -> String {
        match self {
            Self::Pod => format!(
                "At the moment, this pod has more requests for the node's metadata than it may: {} at a time, {} a second; \
                 ask less often.",
                pod_limits::MAX_CONCURRENT_REQUESTS,
                per_second(pod_limits::REQUEST_INTERVAL),
            ),
            Self::Node => format!(
                "At the moment, the pods of this node have more requests for the node's metadata than it is asked: {} at a \
                 time, {} a second; try again shortly.",
                MAX_CONCURRENT_REQUESTS,
                per_second(NODE_INTERVAL),
            ),
        }
    }
}

/// Why nothing is passed on.
#[derive(Debug)]
enum Failure {
    Late(Late),
    TooLong,
    Upstream(UpstreamError),
}

impl Failure {
    fn answer(&self) -> Answer {
        let unavailable = |sentence: &str| answer::failure(StatusCode::SERVICE_UNAVAILABLE, sentence);
        match self {
            Self::Late(late) => unavailable(&late.sentence()),
            Self::TooLong => answer::failure(
                StatusCode::BAD_GATEWAY,
                "What the node's metadata service answers is too long to be passed on.",
            ),
            Self::Upstream(error) => unavailable(&format!("At the moment, {error}.")),
        }
    }
}

fn per_second(interval: Duration) -> u128 {
    Duration::from_secs(1).as_nanos() / interval.as_nanos().max(1)
}

impl Passthrough {
    /// Nothing is on the way yet.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            pod_limits: PodLimits::default(),
            queue: Arc::new(Queue::new(MAX_CONCURRENT_REQUESTS, NODE_INTERVAL, NODE_BURST)),
            turns: Turns::default(),
        }
    }

    /// Counts requests by their turn.
    pub fn turns(&self) -> &Turns {
        &self.turns
    }

    /// Metadata of the node, as the node has it; or why not, by the deadline.
    pub async fn pass(&self, uid: &PodUid, method: &Method, path: &NodePath, deadline: Instant) -> Answer {
        match self.fetch(uid, method, path, deadline).await {
            Ok((response, permits)) => answer::from_node(response, permits),
            Err(failure) => failure.answer(),
        }
    }

    /// A list of the node's metadata, as `visible` leaves it; or why not, by the deadline.
    pub async fn list(
        &self,
        uid: &PodUid,
        path: &NodePath,
        deadline: Instant,
        visible: impl FnOnce(&str) -> String,
    ) -> Answer {
        let (response, permits) = match self.fetch(uid, &Method::GET, path, deadline).await {
            Ok(fetched) => fetched,
            Err(failure) => return failure.answer(),
        };
        if response.status() != StatusCode::OK {
            return answer::from_node(response, permits);
        }
        let (head, body) = response.into_parts();
        let read = Limited::new(body, MAX_LIST).collect();
        match tokio::time::timeout_at(deadline, read).await {
            Ok(Ok(body)) => {
                let entries = String::from_utf8_lossy(&body.to_bytes()).into_owned();
                answer::list_from_node(head, visible(&entries))
            }
            Ok(Err(_)) => Failure::TooLong.answer(),
            Err(_) => Failure::Upstream(UpstreamError::Slow).answer(),
        }
    }

    async fn fetch(
        &self,
        uid: &PodUid,
        method: &Method,
        path: &NodePath,
        deadline: Instant,
    ) -> Result<(Response<Incoming>, Permits), Failure> {
        let permits = self.permits(uid, deadline).await.map_err(Failure::Late)?;
        let passed = tokio::time::timeout_at(deadline, self.upstream.get(method, path));
        let error = match passed.await {
            Ok(Ok(response)) => {
                let length = response.headers().get(CONTENT_LENGTH);
                let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
                if length.is_none_or(|length| length <= MAX_BODY) {
                    return Ok((response, permits));
                }
                return Err(Failure::TooLong);
            }
            Ok(Err(error)) => error,
            Err(_) => UpstreamError::Slow,
        };
        debug!(path = %LoggedPath(path.as_str()), "not passed through: {error}");
        Err(Failure::Upstream(error))
    }

    /// Waits for the request's turn: first among the pod's own, then among those of all pods.
    ///
    /// # Errors
    /// The limit that it waits for at the deadline.
    async fn permits(&self, uid: &PodUid, deadline: Instant) -> Result<Permits, Late> {
        let mut late = Late::Pod;
        let mut has_waited = false;
        let turn = async {
            let of_pod = self.pod_limits.turn(uid, &mut has_waited).await?;
            late = Late::Node;
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

#[cfg(test)]
mod tests;
