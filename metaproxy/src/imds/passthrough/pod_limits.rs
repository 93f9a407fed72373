//! Limits the requests of one pod to the node's metadata service. Further requests wait, so that a pod that sends too
//! many requests delays only itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::pods::PodUid;
use crate::rate_limiter::RateLimiter;

/// The maximum number of concurrent requests of a pod.
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 4;

/// The time between two requests of a pod: 20 a second, a fifth of the node's rate.
pub(super) const REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// The maximum number of requests of a pod in one burst. A monitoring agent that reads the whole tree when it starts
/// requests a few dozen paths.
const BURST: u32 = 40;

/// The limits of all pods that made a request recently.
#[derive(Debug, Default)]
pub(super) struct PodLimits(Mutex<HashMap<PodUid, Arc<PodLimit>>>);

#[derive(Debug)]
struct PodLimit {
    slots: Arc<Semaphore>,
    pace: RateLimiter,
}

impl PodLimits {
    /// Waits for a slot and for the turn of a pod's request. Sets `has_waited` if it had to wait. Returns `None` only
    /// if the semaphore is closed, which never happens.
    pub async fn turn(&self, uid: &PodUid, has_waited: &mut bool) -> Option<OwnedSemaphorePermit> {
        let limit = self.limit(uid);
        let slot = match Arc::clone(&limit.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                *has_waited = true;
                Arc::clone(&limit.slots).acquire_owned().await.ok()?
            }
        };
        // The turn is taken only when it is due. So a request that is given up before takes no turn from later ones.
        while let Err(wait) = limit.pace.try_take(Instant::now().into_std()) {
            *has_waited = true;
            tokio::time::sleep(wait).await;
        }
        Some(slot)
    }

    /// Returns the number of pods that have an entry.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.0.lock().map_or(0, |limits| limits.len())
    }

    fn limit(&self, uid: &PodUid) -> Arc<PodLimit> {
        let mut limits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limit) = limits.get(uid) {
            return Arc::clone(limit);
        }
        let now = Instant::now().into_std();
        // Limits that are as good as new are removed. So the map holds only pods that made a request in the last two
        // seconds.
        limits.retain(|_, limit| Arc::strong_count(limit) > 1 || !limit.is_unused(now));
        let limit = Arc::new(PodLimit {
            slots: Arc::new(Semaphore::new(MAX_CONCURRENT_REQUESTS)),
            pace: RateLimiter::new(REQUEST_INTERVAL, BURST, now),
        });
        limits.insert(uid.clone(), Arc::clone(&limit));
        limit
    }
}

impl PodLimit {
    /// Returns whether no request is under way and all turns are available.
    fn is_unused(&self, now: std::time::Instant) -> bool {
        self.slots.available_permits() == MAX_CONCURRENT_REQUESTS && self.pace.is_idle(now)
    }
}
