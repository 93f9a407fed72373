//! The way of pods to the node's metadata service. It is narrow: the service limits what the whole node may ask, and one
//! pod must not take that from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hyper::header::CONTENT_LENGTH;
use hyper::{Method, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::debug;

use super::answer::{self, Answer};
use super::passage::MAX_BODY;
use super::path::NodePath;
use super::shown::ShownPath;
use super::upstream::{Upstream, UpstreamError};
use crate::pods::PodUid;

/// Requests at a time, of all pods and of each; more wait.
const AT_A_TIME: usize = 32;
const OF_EACH_POD: usize = 4;

/// A place on the way, of the pod's and of all.
pub type Place = [OwnedSemaphorePermit; 2];

/// The way to the node's metadata service.
#[derive(Debug)]
pub struct Passing {
    upstream: Upstream,
    all: Arc<Semaphore>,
    /// For as long as a pod has a request on the way.
    pods: Mutex<HashMap<PodUid, Weak<Semaphore>>>,
}

impl Passing {
    /// Nothing is on the way yet.
    pub fn new(upstream: Upstream) -> Self {
        Self {
            upstream,
            all: Arc::new(Semaphore::new(AT_A_TIME)),
            pods: Mutex::default(),
        }
    }

    /// Metadata of the node, as the node has it; or why not, by the deadline.
    pub async fn pass(&self, uid: &PodUid, method: &Method, path: &NodePath, deadline: Instant) -> Answer {
        let place = tokio::time::timeout_at(deadline, self.place(uid)).await;
        let Ok(Some(place)) = place else {
            return answer::failure(
                StatusCode::SERVICE_UNAVAILABLE,
                "At the moment, too many requests for the node's metadata are under way.",
            );
        };
        let passed = tokio::time::timeout_at(deadline, self.upstream.get(method, path));
        let error = match passed.await {
            Ok(Ok(response)) => {
                let length = response.headers().get(CONTENT_LENGTH);
                let length: Option<u64> = length.and_then(|length| length.to_str().ok()?.parse().ok());
                if length.is_none_or(|length| length <= MAX_BODY) {
                    return answer::from_node(response, place);
                }
                return answer::failure(
                    StatusCode::BAD_GATEWAY,
                    "What the node's metadata service answers is too long to be passed on.",
                );
            }
            Ok(Err(error)) => error,
            Err(_) => UpstreamError::Slow,
        };
        debug!(path = %ShownPath(path.as_str()), "not passed through: {error}");
        answer::failure(
            StatusCode::SERVICE_UNAVAILABLE,
            &format!("At the moment, {error}."),
        )
    }

    /// Neither semaphore is ever closed, so there is always one in the end.
    async fn place(&self, uid: &PodUid) -> Option<Place> {
        let of_pod = self.of_pod(uid).acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some([of_pod, of_all])
    }

    fn of_pod(&self, uid: &PodUid) -> Arc<Semaphore> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = pods.get(uid).and_then(Weak::upgrade) {
            return semaphore;
        }
        pods.retain(|_, semaphore| semaphore.strong_count() > 0);
        let semaphore = Arc::new(Semaphore::new(OF_EACH_POD));
        pods.insert(uid.clone(), Arc::downgrade(&semaphore));
        semaphore
    }
}
