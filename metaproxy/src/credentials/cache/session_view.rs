//! Makes views of sessions for status, explain and metrics. Making a view changes nothing.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::session_log::SLOW_CALL_THRESHOLD;
use super::state::{Phase, State, unanswered};
use super::{Issuer, Sessions};
use crate::credentials::{ObtainError, Session, SessionKey, paced_reason};
use crate::roles::{Grant, Reason};

/// A session at one moment.
#[derive(Clone, Debug)]
pub struct SessionView {
    /// The session, which may have expired.
    pub session: Option<Session>,
    /// The failure of the last call, and how long it is until a request may start another; `None` if the call
    /// succeeded.
    pub failure: Option<(ObtainError, Duration)>,
    /// Whether a call is under way, or waits for its turn.
    pub fetching: bool,
    /// Whether requests that wait for the call have been answered 503 by now.
    pub late: bool,
    /// How long it is until STS may be called for a new session; `None` if no turn is waited for.
    pub paced: Option<Duration>,
    /// Whether the session is not renewed, because no request asked for it.
    pub let_go: bool,
}

/// The number of sessions in each condition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionCounts {
    /// Valid, and the last call succeeded.
    pub valid: u64,
    /// Valid, but the last call failed.
    pub failing: u64,
    /// Not there, and the last call failed.
    pub failed: u64,
    /// Not there, and a call is under way.
    pub fetching: u64,
    /// Valid, and let go: no request asked for it since it was obtained.
    pub idle: u64,
    /// The age of the oldest valid session that is not let go.
    pub oldest: Option<Duration>,
    /// The remaining life of the valid session that expires first and is not let go.
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

    /// Returns why a request of a pod with this grant gets no credentials at this moment; `None` if it gets them, or
    /// starts the first call.
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

    /// Returns the session unless it has expired.
    pub fn valid(&self, now: SystemTime) -> Option<&Session> {
        self.session
            .as_ref()
            .filter(|session| !session.left(now).is_zero())
    }
}

impl<I: Issuer> Sessions<I> {
    /// Returns the view of a key's session; `None` if nothing has asked for it.
    pub fn view(&self, key: &SessionKey) -> Option<SessionView> {
        let slot = self.lock().get(key).cloned()?;
        let view = SessionView::of(&slot.borrow());
        Some(view)
    }

    /// Counts all sessions.
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
