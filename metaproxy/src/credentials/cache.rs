//! Sessions in memory. Each key has at most one STS call under way; whoever needs its result waits for that one.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::{ObtainError, Session, SessionKey};

/// Nothing with less left is served where more can be had in time: botocore rewrites the expiry of what has little
/// left and goes on using it when it is dead.
const LEAST_LEFT: Duration = Duration::from_secs(15 * 60);

/// How long a refusal of STS is remembered.
const DENIED: Duration = Duration::from_secs(30);

/// Waiting time after a first transient failure; doubles with each further one up to [`MAX_BACKOFF`].
const BACKOFF: Duration = Duration::from_millis(500);

/// Longest waiting time after transient failures.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// Who gives out sessions: STS, or a double in tests.
pub trait Issuer: Send + Sync + 'static {
    /// One session for a key.
    fn issue(&self, key: &SessionKey) -> impl Future<Output = Result<Session, ObtainError>> + Send;
}

/// All sessions of this node. Cheap to clone.
#[derive(Debug)]
pub struct Sessions<I> {
    issuer: Arc<I>,
    slots: Arc<Mutex<HashMap<SessionKey, Arc<Slot>>>>,
}

type Slot = watch::Sender<State>;

/// What is known of one session.
#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    failure: Option<Failure>,
    fetching: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    error: ObtainError,
    retry_at: Instant,
    attempts: u32,
}

/// What to do about a state.
#[derive(Debug)]
enum Step {
    Serve(Session),
    Fail(ObtainError),
    Wait,
}

impl<I> Clone for Sessions<I> {
    fn clone(&self) -> Self {
        Self {
            issuer: Arc::clone(&self.issuer),
            slots: Arc::clone(&self.slots),
        }
    }
}

impl<I: Issuer> Sessions<I> {
    /// An empty cache.
    pub fn new(issuer: I) -> Self {
        Self {
            issuer: Arc::new(issuer),
            slots: Arc::default(),
        }
    }

    /// The session for a key, by `deadline` at the latest. A fetch that takes longer goes on behind it.
    pub async fn get(&self, key: &SessionKey, deadline: Instant) -> Result<Session, ObtainError> {
        let slot = self.slot(key);
        let mut changes = slot.subscribe();
        let mut timed_out = false;
        loop {
            match self.step(key, &slot, timed_out) {
                Step::Serve(session) => return Ok(session),
                Step::Fail(error) => return Err(error),
                Step::Wait => {
                    let finished = changes.wait_for(|state| !state.fetching);
                    timed_out = tokio::time::timeout_at(deadline, finished).await.is_err();
                }
            }
        }
    }

    /// Fetches the session if there is none, without waiting for it.
    pub fn prefetch(&self, key: &SessionKey) {
        let slot = self.slot(key);
        let _ = self.step(key, &slot, true);
    }

    /// Forgets every session but these.
    pub fn retain(&self, keys: &HashSet<SessionKey>) {
        self.lock().retain(|key, _| keys.contains(key));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<SessionKey, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Looks at the state, and starts a fetch where one is due and none is under way. With `final_look` it does not
    /// ask for waiting.
    fn step(&self, key: &SessionKey, slot: &Arc<Slot>, final_look: bool) -> Step {
        let mut step = Step::Wait;
        let mut start = false;
        slot.send_if_modified(|state| {
            let now = SystemTime::now();
            let valid = state
                .session
                .as_ref()
                .filter(|session| !session.left(now).is_zero());
            let fresh = valid.filter(|session| !session.is_past_half(now)).is_some();
            let enough =
                valid.is_some_and(|session| session.left(now) >= LEAST_LEFT || !session.is_past_half(now));
            let failing = state
                .failure
                .as_ref()
                .filter(|failure| failure.retry_at > Instant::now());
            start = !fresh && !state.fetching && failing.is_none();
            let may_wait = !final_look && (start || state.fetching);
            step = match (valid, failing) {
                (Some(session), _) if enough || !may_wait => Step::Serve(session.clone()),
                (None, Some(failure)) if !state.fetching => Step::Fail(failure.error.clone()),
                (None, _) if !may_wait => Step::Fail(ObtainError::Unavailable(
                    "STS has not answered yet; try again shortly".to_owned(),
                )),
                _ => Step::Wait,
            };
            state.fetching |= start;
            false
        });
        if start {
            self.fetch(key.clone(), Arc::clone(slot));
        }
        step
    }

    /// In a task of its own, so that it ends whether or not somebody still waits.
    fn fetch(&self, key: SessionKey, slot: Arc<Slot>) {
        let issuer = Arc::clone(&self.issuer);
        tokio::spawn(async move {
            let mut ended = Ended(Some(Arc::clone(&slot)));
            let result = issuer.issue(&key).await;
            ended.0 = None;
            slot.send_modify(|state| {
                state.fetching = false;
                match result {
                    Ok(session) => {
                        debug!(role = %key.role, session = %key.session_name, "obtained {session:?}");
                        state.session = Some(session);
                        state.failure = None;
                    }
                    Err(error) => {
                        warn!(role = %key.role, session = %key.session_name, "no session: {error}");
                        let attempts = state.failure.as_ref().map_or(0, |failure| failure.attempts) + 1;
                        state.failure = Some(Failure {
                            retry_at: Instant::now() + pause(&error, attempts),
                            error,
                            attempts,
                        });
                    }
                }
            });
        });
    }
}

/// A fetch that did not come to its end, however that happened, is none: the next request starts another.
struct Ended(Option<Arc<Slot>>);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            slot.send_modify(|state| state.fetching = false);
        }
    }
}

fn pause(error: &ObtainError, attempts: u32) -> Duration {
    match error {
        ObtainError::Denied(_) => DENIED,
        ObtainError::Unavailable(_) => BACKOFF
            .saturating_mul(1 << attempts.saturating_sub(1).min(10))
            .min(MAX_BACKOFF),
    }
}

#[cfg(test)]
mod tests;
