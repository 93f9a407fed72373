//! Sessions in memory. Each key has at most one STS call under way; whoever needs its result waits for that one.
//!
//! A session is renewed ahead, by timer, for as long as somebody asks for it; one that nobody asked for since it was
//! obtained is let go. What is valid is served whatever STS does; what has expired never is.

mod pacing;
mod session_log;
pub mod session_view;
mod times;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::debug;

pub use self::pacing::{MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
use self::pacing::{Pacing, Turn};
use self::session_log::SessionLog;
use self::times::{background_retry_after, outcome, request_retry_after, until_renewal};
use super::{ObtainError, Session, SessionError, SessionKey};
use crate::pods::PodUid;
use crate::telemetry::metrics::{StsCalls, TurnOutcome, Turns};

/// Nothing with less left is served where more can be had in time. botocore moves the end away of what has less than 17 to 25
/// minutes left: its window of 15 (`ec2_credential_refresh_window`, as its provider sets it) and 2 to 10 more at random
/// (`InstanceMetadataFetcher._evaluate_expiration`); and goes on using it when it is dead. The minute more is for the way
/// there.
const MIN_LEFT: Duration = Duration::from_secs(26 * 60);

/// Calls at a time that nobody waits for: an agent that starts has a session to fetch for each pod of its node.
const MAX_BACKGROUND_CALLS: usize = 16;

/// Who gives out sessions: STS, or a double in tests.
pub trait Issuer: Send + Sync + 'static {
    /// One session for a key.
    fn issue(&self, key: &SessionKey) -> impl Future<Output = Result<Session, ObtainError>> + Send;
}

/// All sessions of this node. Cheap to clone.
pub struct Sessions<I>(Arc<Shared<I>>);

struct Shared<I> {
    issuer: I,
    clock: fn() -> SystemTime,
    slots: Mutex<HashMap<SessionKey, Arc<Slot>>>,
    ahead: Semaphore,
    pacing: Pacing,
    calls: StsCalls,
    log: SessionLog,
}

type Slot = watch::Sender<State>;

/// Where the session of one key is kept, once that was looked for. It does not keep what is forgotten.
#[derive(Debug, Default)]
pub struct SessionHandle(OnceLock<Weak<Slot>>);

/// What one connection was served last, always for the same key: served again as long as it is young and nothing has
/// happened to its slot, without a look at it.
#[derive(Debug, Default)]
pub struct RecentSession(Option<(watch::Receiver<State>, Session)>);

impl RecentSession {
    /// A slot that is forgotten has ended. One that was looked at is wanted, and so not let go, until it is fetched anew.
    fn is_good(&self, now: SystemTime) -> bool {
        self.0.as_ref().is_some_and(|(slot, session)| {
            matches!(slot.has_changed(), Ok(false)) && !session.is_past_half(now)
        })
    }
}

/// What is known of one session.
#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    failure: Option<Failure>,
    fetching: bool,
    /// Since when a request waits for the fetch, which then does not wait for others.
    urgent: Option<Instant>,
    /// Somebody asked for it since it was obtained, or it was prefetched and is not obtained yet.
    wanted: bool,
    /// It is not renewed by timer: the next request does it.
    let_go: bool,
    /// Counts fetches: what was planned after one is void after the next.
    fetches: u64,
    /// Whether STS may be asked.
    turn: Turn,
    /// No pod has this session any more: STS is not asked for it, whatever waits.
    forgotten: bool,
}

#[derive(Clone, Debug)]
struct Failure {
    error: ObtainError,
    retry_at: Instant,
    attempts: u32,
    /// The first of them.
    since: Instant,
}

/// What to do about a state.
#[derive(Debug)]
enum Step {
    Serve(Session),
    Fail(SessionError),
    Wait,
}

/// What a plan has come to.
#[derive(Debug)]
enum Due {
    Renewal,
    /// Nobody asked for it; it is served for as long as it is valid.
    LettingGo(Duration),
    /// A request has started another fetch, which goes on from there.
    Nothing,
}

/// Who looks at a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// A request that can wait.
    Patient,
    /// A request at its deadline.
    Final,
    /// Nobody yet: a pod with a role has appeared.
    Ahead,
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
    /// An empty cache.
    pub fn new(issuer: I) -> Self {
        Self::with_clock(issuer, SystemTime::now)
    }

    fn with_clock(issuer: I, clock: fn() -> SystemTime) -> Self {
        Self(Arc::new(Shared {
            issuer,
            clock,
            slots: Mutex::default(),
            ahead: Semaphore::new(MAX_BACKGROUND_CALLS),
            pacing: Pacing::default(),
            calls: StsCalls::default(),
            log: SessionLog::default(),
        }))
    }

    /// The session for a key, where there is one that is served without waiting: `None` says nothing yet. Where it is
    /// kept is written into `handle`, and not looked for the next time; `recent` is the connection's, for this key alone. A
    /// new session is charged to `pod`.
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
        let slot = known.filter(|slot| !slot.borrow().forgotten).unwrap_or_else(|| {
            let slot = self.slot(key);
            let _ = handle.0.set(Arc::downgrade(&slot));
            slot
        });
        // Before the look, so that no change after it is missed.
        let changes = slot.subscribe();
        match self.step(pod, key, &slot, Look::Patient) {
            Step::Serve(session) => Some((changes, session)),
            Step::Fail(_) | Step::Wait => None,
        }
    }

    /// The session for a key, by `deadline` at the latest. A fetch that takes longer goes on behind it. A new session is
    /// charged to `pod`.
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
        let mut look = Look::Patient;
        loop {
            match self.step(pod, key, &slot, look) {
                Step::Serve(session) => return Ok(session),
                Step::Fail(error) => return Err(error),
                Step::Wait => {
                    let mut changes = slot.subscribe();
                    let finished = changes.wait_for(|state| !state.fetching);
                    if tokio::time::timeout_at(deadline, finished).await.is_err() {
                        look = Look::Final;
                    }
                }
            }
        }
    }

    /// Fetches the session if there is none, without waiting for it. A new session is charged to `pod`.
    pub fn prefetch(&self, pod: &PodUid, key: &SessionKey) {
        let slot = self.slot(key);
        let _ = self.step(pod, key, &slot, Look::Ahead);
    }

    /// What is measured of STS calls.
    pub fn calls(&self) -> &StsCalls {
        &self.0.calls
    }

    /// What is measured of new sessions.
    pub fn turns(&self) -> &Turns {
        &self.0.pacing.turns
    }

    /// Forgets every session but these: no other is renewed, nor fetched if it was to be.
    pub fn retain(&self, keys: &HashSet<SessionKey>) {
        self.lock().retain(|key, slot| {
            let is_kept = keys.contains(key);
            if !is_kept {
                slot.send_modify(|state| state.forgotten = true);
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

    /// Looks at the state, and starts a fetch where one is due and none is under way.
    fn step(&self, pod: &PodUid, key: &SessionKey, slot: &Arc<Slot>, look: Look) -> Step {
        let mut step = Step::Wait;
        let mut start = false;
        slot.send_if_modified(|state| {
            let now = (self.0.clock)();
            let valid = state
                .session
                .as_ref()
                .filter(|session| !session.left(now).is_zero());
            let young = valid.is_some_and(|session| !session.is_past_half(now));
            let fresh = young && !state.let_go;
            let enough = young || valid.is_some_and(|session| session.left(now) >= MIN_LEFT);
            let failing = state
                .failure
                .as_ref()
                .filter(|failure| failure.retry_at > Instant::now());
            let is_due = !fresh && !state.fetching && failing.is_none();
            start = is_due && !state.forgotten;
            let may_wait = look == Look::Patient && (start || state.fetching);
            step = match (valid, failing) {
                (Some(session), _) if enough || !may_wait => Step::Serve(session.clone()),
                (None, Some(failure)) if !state.fetching => Step::Fail(failure.error.clone().into()),
                (None, _) if is_due && !start => Step::Fail(SessionError::Forgotten),
                (None, _) if !may_wait => Step::Fail(late(state)),
                _ => Step::Wait,
            };
            let is_another = (start || state.fetching) && state.turn.ask(pod);
            state.fetching |= start;
            state.wanted = true;
            let hurry = matches!(step, Step::Wait) && state.urgent.is_none();
            if hurry {
                state.urgent = Some(Instant::now());
            }
            (hurry || is_another) && !start
        });
        if start {
            let (sessions, key, slot) = (self.clone(), key.clone(), Arc::clone(slot));
            // In a task of its own, so that it ends whether or not somebody still waits.
            tokio::spawn(async move { sessions.keep(key, slot).await });
        }
        step
    }

    /// Fetches a session and goes on renewing it, until nobody wants it any more or another fetch has taken over.
    async fn keep(self, key: SessionKey, mut slot: Arc<Slot>) {
        while let Some(mut pause) = self.fetch(&key, &slot).await {
            let fetches = slot.borrow().fetches;
            loop {
                let Some(held) = after(pause, slot).await else {
                    return;
                };
                slot = held;
                match self.due(&slot, fetches) {
                    Due::Renewal => break,
                    Due::LettingGo(left) if !left.is_zero() => {
                        debug!(role = %key.role, session = %key.shape.name, "nobody asked for it; it is let go");
                        pause = left;
                    }
                    Due::LettingGo(_) => {
                        slot.send_modify(|state| state.session = None);
                        return;
                    }
                    Due::Nothing => return,
                }
            }
        }
    }

    /// What is to be done when the time that was planned after a fetch has come. A renewal is marked as under way.
    fn due(&self, slot: &Slot, fetches: u64) -> Due {
        let mut due = Due::Nothing;
        slot.send_if_modified(|state| {
            if state.fetches != fetches || state.fetching || state.forgotten {
                return false;
            }
            state.fetching = state.wanted;
            due = if state.wanted {
                Due::Renewal
            } else {
                state.let_go = true;
                let session = state.session.as_ref();
                Due::LettingGo(session.map_or(Duration::ZERO, |session| session.left((self.0.clock)())))
            };
            false
        });
        due
    }

    /// One fetch; the state is marked as fetching. How long to wait before the next one, if there is to be one that
    /// nobody asks for.
    async fn fetch(&self, key: &SessionKey, slot: &Slot) -> Option<Duration> {
        let ended = Ended(slot);
        let mut changes = slot.subscribe();
        if !self.turn(key, slot, &mut changes).await {
            return None;
        }
        let permit = tokio::select! {
            biased;
            permit = self.0.ahead.acquire() => permit.ok(),
            _ = changes.wait_for(|state| state.urgent.is_some() || state.forgotten) => None,
        };
        if slot.borrow().forgotten {
            self.0.pacing.turns.ended(TurnOutcome::GivenUp);
            return None;
        }
        // On the heap for as long as it takes: what waits for the next renewal, for each session, is small then.
        let began = Instant::now();
        let result = Box::pin(self.0.issuer.issue(key)).await;
        drop(permit);
        self.0.calls.ended(outcome(&result), began.elapsed());
        let mut pause = None;
        let log = &self.0.log;
        slot.send_modify(|state| match result {
            Ok(session) => {
                log.obtained(key, &session, state.failure.as_ref());
                if state.urgent.is_some() {
                    log.waited(key, began);
                }
                pause = Some(until_renewal(&session, (self.0.clock)()));
                state.session = Some(session);
                state.failure = None;
                state.wanted = false;
                state.let_go = false;
            }
            Err(error) => {
                let before = state.failure.take();
                let attempts = before.as_ref().map_or(0, |failure| failure.attempts) + 1;
                pause = background_retry_after(&error, attempts);
                let failure = Failure {
                    retry_at: Instant::now() + request_retry_after(&error, attempts),
                    error,
                    attempts,
                    since: before.as_ref().map_or(began, |failure| failure.since),
                };
                log.failed(key, before.as_ref(), &failure);
                state.failure = Some(failure);
            }
        });
        drop(ended);
        pause
    }
}

/// Why there is no session at the deadline, while one is fetched or about to be.
fn late(state: &State) -> SessionError {
    if state.turn.until().is_some() {
        return SessionError::Paced;
    }
    unanswered(state.failure.as_ref().map(|failure| &failure.error)).into()
}

/// Why a request is not served while STS has not answered: what failed before, if that goes on.
fn unanswered(failure: Option<&ObtainError>) -> ObtainError {
    match failure {
        Some(error @ ObtainError::Unavailable(_)) => error.clone(),
        _ => ObtainError::Unavailable("STS has not answered yet; try again shortly".to_owned()),
    }
}

/// However a fetch ends, it is under way no longer: the next request starts another.
struct Ended<'a>(&'a Slot);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|state| {
            state.fetching = false;
            state.urgent = None;
            state.fetches += 1;
        });
    }
}

/// The slot again after a while, if it is not forgotten by then.
async fn after(pause: Duration, slot: Arc<Slot>) -> Option<Arc<Slot>> {
    let weak = Arc::downgrade(&slot);
    drop(slot);
    tokio::time::sleep(pause).await;
    weak.upgrade()
}

#[cfg(test)]
mod tests;
