//! What one pod may ask of the node's metadata service. More has to wait, so that a pod that floods waits for itself and
//! not others for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::pods::PodUid;
use crate::rate_limiter::RateLimiter;

/// Requests of a pod under way at a time.
pub(super) const MAX_CONCURRENT_REQUESTS: usize = 4;

/// From one request of a pod to the next: 20 a second, a fifth of the node's.
pub(super) const REQUEST_INTERVAL: Duration = Duration::from_millis(50);

/// Requests of a pod at once: an agent that reads the whole tree when it starts asks for a few dozen paths.
const BURST: u32 = 40;

/// The limit of each pod that asked lately.
#[derive(Debug, Default)]
pub(super) struct PodLimits(Mutex<HashMap<PodUid, Arc<PodLimit>>>);

#[derive(Debug)]
struct PodLimit {
    slots: Arc<Semaphore>,
    pace: RateLimiter,
}

impl PodLimits {
    /// Waits for a slot and for the turn of a pod's request; notes whether it had to. `None` never comes in practice:
    /// the semaphore is not closed.
    pub async fn turn(&self, uid: &PodUid, has_waited: &mut bool) -> Option<OwnedSemaphorePermit> {
        let limit = self.limit(uid);
        let slot = match Arc::clone(&limit.slots).try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                *has_waited = true;
                Arc::clone(&limit.slots).acquire_owned().await.ok()?
            }
        };
        // The turn is taken when it is there: a request that is given up before takes none from those that come later.
        while let Err(wait) = limit.pace.try_take(Instant::now().into_std()) {
            *has_waited = true;
            tokio::time::sleep(wait).await;
        }
        Some(slot)
    }

    /// The number of pods that are known.
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
        // Those that are as good as new make room, so no more are kept than asked within two seconds.
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
    /// Tells whether nothing is under way, and all turns are there.
    fn is_unused(&self, now: std::time::Instant) -> bool {
        self.slots.available_permits() == MAX_CONCURRENT_REQUESTS && self.pace.is_idle(now)
    }
}
