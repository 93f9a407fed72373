//! What there is of sessions, to be shown: looking changes nothing.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::session_log::SLOW_CALL_THRESHOLD;
use super::state::{Phase, State, unanswered};
use super::{Issuer, Sessions};
use crate::credentials::{ObtainError, Session, SessionKey, paced_reason};
use crate::roles::{Grant, Reason};

/// What there is of a session at one moment.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// The session, which may have expired.
    pub session: Option<Session>,
    /// What the last attempt came to, where it failed, and how long until the next request makes another.
    pub failure: Option<(ObtainError, Duration)>,
    /// Whether an attempt is under way.
    pub fetching: bool,
    /// Whether requests that wait for it have been answered 503 by now.
    pub late: bool,
    /// How long it is until STS may be asked for a new session, if that is waited for.
    pub paced: Option<Duration>,
    /// Whether it is left to end, as nobody asked for it.
    pub let_go: bool,
}

/// All sessions, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Valid, and the last attempt succeeded.
    pub valid: u64,
    /// Valid, but the attempt to renew it failed.
    pub failing: u64,
    /// None, and the last attempt failed.
    pub failed: u64,
    /// None, and it is being fetched.
    pub fetching: u64,
    /// Valid, and left to end: nobody asked for it since it was obtained.
    pub idle: u64,
    /// Of those that are renewed, the time since the oldest was obtained.
    pub oldest: Option<Duration>,
    /// Of those that are renewed, what is left of the one that ends first.
    pub least_left: Option<Duration>,
}

impl SessionView {
    fn of(state: &State) -> Self {
        Self {
            session: state.session.clone(),
            failure: state.failure.as_ref().map(|failure| {
                let pause = failure.retry_at.saturating_duration_since(Instant::now());
                (failure.error.clone(), pause)
            }),
            fetching: state.phase.is_calling(),
            late: state
                .phase
                .awaited_since()
                .is_some_and(|since| since.elapsed() >= SLOW_CALL_THRESHOLD),
            paced: state
                .turn
                .until()
                .map(|until| until.saturating_duration_since(Instant::now())),
            let_go: state.phase == Phase::LetGo,
        }
    }

    /// Why a request of a pod with this grant is not given credentials at this moment; `None` if it is, or if it makes the
    /// first attempt.
    pub fn lacking(&self, grant: &Grant, now: SystemTime) -> Option<Reason> {
        let failure = self.failure.as_ref().map(|(error, _)| error);
        if self.valid(now).is_some() {
            None
        } else if self.paced.is_some() {
            Some(paced_reason(grant))
        } else if self.late {
            Some(unanswered(failure).reason(&grant.role))
        } else {
            failure.map(|error| error.reason(&grant.role))
        }
    }

    /// The session, where it has not expired.
    pub fn valid(&self, now: SystemTime) -> Option<&Session> {
        self.session
            .as_ref()
            .filter(|session| !session.left(now).is_zero())
    }
}

impl<I: Issuer> Sessions<I> {
    /// What there is for a key; `None` where nobody has asked for it.
    pub fn view(&self, key: &SessionKey) -> Option<SessionView> {
        let slot = self.lock().get(key).cloned()?;
        let view = SessionView::of(&slot.borrow());
        Some(view)
    }

    /// All of them, counted.
    pub fn counts(&self) -> SessionCounts {
        let slots: Vec<_> = self.lock().values().cloned().collect();
        let now = (self.0.clock)();
        let mut counts = SessionCounts::default();
        for slot in slots {
            let view = SessionView::of(&slot.borrow());
            match (view.valid(now), &view.failure) {
                (Some(_), _) if view.let_go => counts.idle += 1,
                (Some(session), failure) => {
                    let (age, left) = (
                        session.life().saturating_sub(session.left(now)),
                        session.left(now),
                    );
                    counts.oldest = counts.oldest.max(Some(age));
                    counts.least_left = Some(counts.least_left.map_or(left, |least| least.min(left)));
                    if failure.is_some() {
                        counts.failing += 1;
                    } else {
                        counts.valid += 1;
                    }
                }
                (None, _) if view.fetching => counts.fetching += 1,
                (None, Some(_)) => counts.failed += 1,
                (None, None) => {}
            }
        }
        counts
    }
}
