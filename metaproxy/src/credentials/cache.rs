//! Keeps sessions in memory. Each key has at most one STS call under way, and all requests that need its result wait
//! for that call.
//!
//! A timer renews a session before it expires, for as long as requests ask for it. A session that no request has
//! asked for since it was obtained is let go. A valid session is served even if STS fails. An expired session is
//! never served. [`state::step`] decides which of these happens, and this module carries it out.

mod keeper;
mod pacing;
mod session_log;
pub mod session_view;
mod state;
mod times;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use self::pacing::Pacing;
pub use self::pacing::{MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
use self::session_log::SessionLog;
use self::state::{Actions, Answer, Asker, Event, Next, Now, State, step};
use super::{ObtainError, Session, SessionError, SessionKey};
use crate::pods::PodUid;
use crate::telemetry::metrics::{StsCalls, Turns};

/// The maximum number of concurrent STS calls that no request waits for. An agent that starts obtains a session for
/// each pod of its node.
const MAX_BACKGROUND_CALLS: usize = 16;

/// Issues sessions: STS, or a test double.
pub trait Issuer: Send + Sync + 'static {
    /// Obtains one session for a key.
    fn issue(&self, key: &SessionKey) -> impl Future<Output = Result<Session, ObtainError>> + Send;
}

/// All sessions of this node. Cheap to clone.
pub struct Sessions<I>(Arc<Shared<I>>);

struct Shared<I> {
    issuer: I,
    clock: fn() -> SystemTime,
    slots: Mutex<HashMap<SessionKey, Arc<Slot>>>,
    background_calls: Semaphore,
    pacing: Pacing,
    calls: StsCalls,
    log: SessionLog,
}

type Slot = watch::Sender<State>;

/// A reference to the slot in which the session of one key is kept. The first lookup sets it. It does not keep the
/// session of a forgotten key.
#[derive(Debug, Default)]
pub struct SessionHandle(OnceLock<Weak<Slot>>);

impl<I> Clone for Sessions<I> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<I> fmt::Debug for Sessions<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

impl<I: Issuer> Sessions<I> {
    /// Makes an empty cache.
    pub fn new(issuer: I) -> Self {
        Self::with_clock(issuer, SystemTime::now)
    }

    fn with_clock(issuer: I, clock: fn() -> SystemTime) -> Self {
        Self(Arc::new(Shared {
            issuer,
            clock,
            slots: Mutex::default(),
            background_calls: Semaphore::new(MAX_BACKGROUND_CALLS),
            pacing: Pacing::default(),
            calls: StsCalls::default(),
            log: SessionLog::default(),
        }))
    }

    /// Returns the session for a key if one can be served without waiting. If not, [`Self::get`] may still obtain
    /// one.
    ///
    /// `handle` remembers the slot of the session, so that later calls need no lookup by the key. A new session is
    /// charged to `pod`.
    pub fn ready(&self, pod: &PodUid, key: &SessionKey, handle: &SessionHandle) -> Option<Session> {
        let known = handle.0.get().and_then(Weak::upgrade);
        let known = known.filter(|slot| !slot.borrow().phase.is_forgotten());
        let slot = known.unwrap_or_else(|| {
            let slot = self.slot(key);
            let _ = handle.0.set(Arc::downgrade(&slot));
            slot
        });
        match self.ask(pod, key, &slot, Asker::Request) {
            Answer::Serve(session) => Some(session),
            Answer::Fail(_) | Answer::Wait => None,
        }
    }

    /// Returns the session for a key, by `deadline` at the latest. A call that takes longer goes on in the
    /// background. A new session is charged to `pod`.
    ///
    /// # Errors
    /// Returns why there is no session, or none yet.
    pub async fn get(
        &self,
        pod: &PodUid,
        key: &SessionKey,
        deadline: Instant,
    ) -> Result<Session, SessionError> {
        let slot = self.slot(key);
        let mut asker = Asker::Request;
        loop {
            match self.ask(pod, key, &slot, asker) {
                Answer::Serve(session) => return Ok(session),
                Answer::Fail(error) => return Err(error),
                Answer::Wait => {
                    let mut changes = slot.subscribe();
                    let finished = changes.wait_for(|state| !state.phase.is_calling());
                    if tokio::time::timeout_at(deadline, finished).await.is_err() {
                        asker = Asker::RequestAtDeadline;
                    }
                }
            }
        }
    }

    /// Calls STS for the session if there is none, without waiting for it. A new session is charged to `pod`.
    pub fn prefetch(&self, pod: &PodUid, key: &SessionKey) {
        let slot = self.slot(key);
        let _ = self.ask(pod, key, &slot, Asker::Prefetch);
    }

    /// Returns the metrics of STS calls.
    pub fn calls(&self) -> &StsCalls {
        &self.0.calls
    }

    /// Returns the numbers of new sessions that got their turn at once, after a wait, or not at all.
    pub fn turns(&self) -> &Turns {
        &self.0.pacing.turns
    }

    /// Forgets all sessions but these. STS is not called for the others, even if a call was planned.
    pub fn retain(&self, keys: &HashSet<SessionKey>) {
        self.lock().retain(|key, slot| {
            let is_kept = keys.contains(key);
            if !is_kept {
                let _ = self.apply(slot, Event::Forgotten);
            }
            is_kept
        });
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Arc<Slot>>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, key: &SessionKey) -> Arc<Slot> {
        let mut slots = self.lock();
        if let Some(slot) = slots.get(key) {
            return Arc::clone(slot);
        }
        let slot = Arc::new(watch::Sender::new(State::default()));
        slots.insert(key.clone(), Arc::clone(&slot));
        slot
    }

    /// Asks for the session, and starts a call if one is due and none is under way.
    fn ask(&self, pod: &PodUid, key: &SessionKey, slot: &Arc<Slot>, by: Asker) -> Answer {
        let Actions { answer, next, .. } = self.apply(slot, Event::Asked { pod, by });
        if next == Next::Call {
            let (sessions, key, slot) = (self.clone(), key.clone(), Arc::clone(slot));
            // The call runs in a task of its own, so that it ends even if no request waits any more.
            tokio::spawn(async move { sessions.keep(key, slot).await });
        }
        answer.unwrap_or(Answer::Wait)
    }

    /// Applies an event to the state, and returns the actions that follow.
    fn apply(&self, slot: &Slot, event: Event<'_>) -> Actions {
        let mut actions = Actions::default();
        slot.send_if_modified(|state| {
            let now = Now {
                wall: (self.0.clock)(),
                monotonic: Instant::now(),
            };
            (*state, actions) = step(std::mem::take(state), event, now);
            actions.notify
        });
        actions
    }
}

#[cfg(test)]
mod tests;
