//! Decides which pod's request is sent to the node's metadata service next. The pod that was served longest ago goes
//! first. So a pod that makes few requests does not wait behind pods that make many, even if there are many such
//! pods. Those take turns.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use crate::pods::PodUid;
use crate::rate_limiter::RateLimiter;

/// How long it is remembered that a pod was served. After that, it counts as a pod that was never served.
const SERVED_MEMORY: Duration = Duration::from_secs(10);

/// The requests of all pods, and the rate at which they are sent.
#[derive(Debug)]
pub(super) struct Queue {
    slots: Arc<Semaphore>,
    pace: RateLimiter,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Requests that wait, in order. Each pod in this map has at least one.
    waiting: HashMap<PodUid, VecDeque<Waiting>>,
    /// When pods were last served.
    served: HashMap<PodUid, Instant>,
    /// The number of requests so far that had to wait.
    arrivals: u64,
    /// Whether a task gives turns to the requests that wait.
    is_dispatching: bool,
}

#[derive(Debug)]
struct Waiting {
    arrival: u64,
    turn: oneshot::Sender<OwnedSemaphorePermit>,
}

impl Queue {
    /// Makes a queue for `slots` concurrent requests. `burst` of them may begin at once, and then one after each
    /// interval.
    pub fn new(slots: usize, interval: Duration, burst: u32) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(slots)),
            pace: RateLimiter::new(interval, burst, Instant::now().into_std()),
            inner: Mutex::default(),
        }
    }

    /// Waits for the turn of a pod's request. Sets `has_waited` if it had to wait. Never returns `None` in practice,
    /// because each request that waits gets its turn.
    pub async fn turn(self: &Arc<Self>, uid: &PodUid, has_waited: &mut bool) -> Option<OwnedSemaphorePermit> {
        let turn = {
            let mut inner = self.lock();
            inner.prune();
            if inner.waiting.is_empty()
                && let Some(slot) = self.slot_at_once()
            {
                inner.note_served(uid);
                return Some(slot);
            }
            let (turn, given) = oneshot::channel();
            inner.arrivals += 1;
            let arrival = inner.arrivals;
            let requests = inner.waiting.entry(uid.clone()).or_default();
            requests.push_back(Waiting { arrival, turn });
            if !std::mem::replace(&mut inner.is_dispatching, true) {
                tokio::spawn(Arc::clone(self).dispatch());
            }
            given
        };
        *has_waited = true;
        turn.await.ok()
    }

    /// Returns the number of entries of pods.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.waiting.len() + inner.served.len()
    }

    fn slot_at_once(&self) -> Option<OwnedSemaphorePermit> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        self.pace.try_take(Instant::now().into_std()).ok()?;
        Some(slot)
    }

    /// Gives out turns until no request waits.
    async fn dispatch(self: Arc<Self>) {
        while !self.is_done() {
            let Ok(mut slot) = Arc::clone(&self.slots).acquire_owned().await else {
                return;
            };
            while let Err(wait) = self.pace.try_take(Instant::now().into_std()) {
                tokio::time::sleep(wait).await;
            }
            // The next request is chosen at the last moment, because one that has just come may go before all others.
            let mut inner = self.lock();
            while let Some((uid, next)) = inner.next() {
                match next.turn.send(slot) {
                    Ok(()) => {
                        inner.note_served(&uid);
                        break;
                    }
                    // The request was given up.
                    Err(back) => slot = back,
                }
            }
        }
    }

    /// Returns whether no request waits. If so, it notes that no task dispatches any more.
    fn is_done(&self) -> bool {
        let mut inner = self.lock();
        inner.prune();
        let is_done = inner.waiting.is_empty();
        inner.is_dispatching = !is_done;
        is_done
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes the next request. It is the first one of the pod that was served longest ago. Among pods that were not
    /// served recently, it is the one that has waited longest.
    fn next(&mut self) -> Option<(PodUid, Waiting)> {
        let rank = |uid: &PodUid, requests: &VecDeque<Waiting>| {
            (
                self.served.get(uid).copied(),
                requests.front().map(|first| first.arrival),
            )
        };
        let first = self
            .waiting
            .iter()
            .min_by_key(|(uid, requests)| rank(uid, requests));
        let uid = first.map(|(uid, _)| uid.clone())?;
        let requests = self.waiting.get_mut(&uid)?;
        let next = requests.pop_front()?;
        if requests.is_empty() {
            self.waiting.remove(&uid);
        }
        Some((uid, next))
    }

    /// Drops requests that were given up.
    fn prune(&mut self) {
        self.waiting.retain(|_, requests| {
            requests.retain(|request| !request.turn.is_closed());
            !requests.is_empty()
        });
    }

    fn note_served(&mut self, uid: &PodUid) {
        let now = Instant::now();
        if self.served.insert(uid.clone(), now).is_none() {
            self.served
                .retain(|_, served| now.duration_since(*served) < SERVED_MEMORY);
        }
    }
}
