//! Sessions in memory. Each key has at most one STS call under way, and all requests that need its result wait for that
//! one.
//!
//! A session is renewed ahead, by timer, for as long as requests ask for it; one that no request asked for since it was
//! obtained is let go. A valid session is served whatever STS does; one that has expired never is. Which of these
//! happens is decided by [`state::step`]; this module carries it out.

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

/// STS calls at a time that no request waits for: an agent that starts has a session to fetch for each pod of its node.
const MAX_BACKGROUND_CALLS: usize = 16;

/// Gives out sessions: STS, or a double in tests.
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

/// Where the session of one key is kept, once it was looked up. It does not keep the session of a key that is
/// forgotten.
#[derive(Debug, Default)]
pub struct SessionHandle(OnceLock<Weak<Slot>>);

/// The session that one connection was served last, always for the same key. It is served again, without a look at the
/// session's state, as long as it is in the first half of its life and the state has not changed.
#[derive(Debug, Default)]
pub struct RecentSession(Option<(watch::Receiver<State>, Session)>);

impl RecentSession {
    /// Tells whether the session may be served again. The slot of a forgotten key has changed or is closed. A session
    /// that was looked at counts as in use until its renewal, so it is not let go meanwhile.
    fn is_good(&self, now: SystemTime) -> bool {
        self.0.as_ref().is_some_and(|(slot, session)| {
            matches!(slot.has_changed(), Ok(false)) && !session.is_past_half(now)
        })
    }
}

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

    /// Returns the session for a key if one can be served without waiting; `None` says nothing about later.
    ///
    /// `handle` remembers where the session is kept. `recent` belongs to one connection and to this key; while it is
    /// good, no lock is taken. A new session is charged to `pod`.
    pub fn ready<'a>(
        &self,
        pod: &PodUid,
        key: &SessionKey,
        handle: &SessionHandle,
        recent: &'a mut RecentSession,
    ) -> Option<&'a Session> {
        if !recent.is_good((self.0.clock)()) {
            recent.0 = self.look(pod, key, handle);
        }
        recent.0.as_ref().map(|(_, session)| session)
    }

    fn look(
        &self,
        pod: &PodUid,
        key: &SessionKey,
        handle: &SessionHandle,
    ) -> Option<(watch::Receiver<State>, Session)> {
        let known = handle.0.get().and_then(Weak::upgrade);
        let known = known.filter(|slot| !slot.borrow().phase.is_forgotten());
        let slot = known.unwrap_or_else(|| {
            let slot = self.slot(key);
            let _ = handle.0.set(Arc::downgrade(&slot));
            slot
        });
        // Subscribed before the look, so that no change after it is missed.
        let changes = slot.subscribe();
        match self.ask(pod, key, &slot, Asker::Request) {
            Answer::Serve(session) => Some((changes, session)),
            Answer::Fail(_) | Answer::Wait => None,
        }
    }

    /// Returns the session for a key, by `deadline` at the latest. A call that takes longer goes on in the background.
    /// A new session is charged to `pod`.
    ///
    /// # Errors
    /// Why there is none, or none yet.
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

    /// Returns the metrics of new sessions, by how long they waited for their pod's turn.
    pub fn turns(&self) -> &Turns {
        &self.0.pacing.turns
    }

    /// Forgets every session but these: STS is not called for any other, not even if a call was planned.
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
            // In a task of its own, so that the call ends whether or not a request still waits.
            tokio::spawn(async move { sessions.keep(key, slot).await });
        }
        answer.unwrap_or(Answer::Wait)
    }

    /// Takes the state one step further, and returns what is left to do.
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
