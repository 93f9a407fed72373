//! Defines the state of one session, and what follows from each event. [`step`] is a pure function: the cache has the
//! clocks, STS calls, timers and the log. So each transition can be tested as a row of a table.
//!
//! ```text
//! Idle ──asked──► Calling ──session──► Unused ──asked──► InUse ──timer──► Calling
//!                  │   │                └──timer──► LetGo ──asked──► Calling
//!                  │   │                             └──expired──► Idle
//!                  │   └──STS away──► Retrying ──timer, or asked when due──► Calling
//!                  └──refused──► Idle
//! ```
//!
//! `InUse`, like `Retrying`, also leads to `Calling` when the session is past half its life and a request asks. From
//! every phase a forgotten key leads to `Forgotten`, or to `ForgottenCalling` until the call is over.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::pacing::Turn;
use super::times::{background_retry_after, request_retry_after, until_renewal};
use crate::credentials::{ObtainError, Session, SessionError};
use crate::pods::PodUid;

/// The minimum remaining life of a session that is served without waiting. With less left, a request waits for a call
/// that may bring a new session before its deadline. If none comes, or STS has just failed, the session is served for
/// as long as it is valid. A session in the first half of its life is always served at once.
///
/// botocore moves the expiry of a session that has less than 17 to 25 minutes left. This is the sum of its window of
/// 15 minutes (`ec2_credential_refresh_window`, as its provider sets it) and 2 to 10 minutes more at random
/// (`InstanceMetadataFetcher._evaluate_expiration`). It then uses the session beyond its end. One more minute is for
/// the time until the response arrives.
const MIN_LEFT: Duration = Duration::from_secs(26 * 60);

/// One moment on two clocks: sessions expire by the wall clock, and waits are measured with the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub wall: SystemTime,
    pub monotonic: Instant,
}

/// Everything that the cache knows of the session of one key.
#[derive(Debug, Default)]
pub(super) struct State {
    pub phase: Phase,
    /// The last session that STS gave, which may have expired.
    pub session: Option<Session>,
    /// Why the last call failed; `None` if it succeeded.
    pub failure: Option<Failure>,
    /// Whether pacing allows the first STS call.
    pub turn: Turn,
    /// The number of calls that have ended. A timer that was set after one of them is void after the next.
    pub calls: u64,
}

/// The phase that a session is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// No call is under way and none is planned: the next request starts one if it needs a session.
    #[default]
    Idle,
    /// A call is under way, or waits for its turn.
    Calling {
        /// When a request began to wait for the call, if one waits. The call then does not queue behind calls that no
        /// request waits for.
        awaited_since: Option<Instant>,
    },
    /// STS gave the session and no request has asked for it since. When its renewal is due, it is let go.
    Unused,
    /// STS gave the session and a request has asked for it since. When its renewal is due, STS is called.
    InUse,
    /// The last call failed and a timer will start another, whether or not a request comes.
    Retrying,
    /// No request asked for the session before its renewal was due. It is served until its end; a request renews it.
    LetGo,
    /// No pod has this session any more: STS is not called for it.
    Forgotten,
    /// No pod has this session any more, and a call is not over yet. If the call has reached STS, requests wait for
    /// it. If not, it is dropped.
    ForgottenCalling {
        /// As in `Calling`.
        awaited_since: Option<Instant>,
    },
}

impl Phase {
    /// Returns whether a call is under way, or waits for its turn.
    pub fn is_calling(self) -> bool {
        matches!(self, Self::Calling { .. } | Self::ForgottenCalling { .. })
    }

    /// Returns whether no pod has the session any more.
    pub fn is_forgotten(self) -> bool {
        matches!(self, Self::Forgotten | Self::ForgottenCalling { .. })
    }

    /// Returns whether a call must not go on waiting: a request waits for it, or no pod has the session any more.
    pub fn is_hurried(self) -> bool {
        self.awaited_since().is_some() || self.is_forgotten()
    }

    /// Returns when a request began to wait for the call; `None` if no request waits.
    pub fn awaited_since(self) -> Option<Instant> {
        match self {
            Self::Calling { awaited_since } | Self::ForgottenCalling { awaited_since } => awaited_since,
            _ => None,
        }
    }

    fn awaited(self, since: Instant) -> Self {
        let awaited_since = Some(self.awaited_since().unwrap_or(since));
        match self {
            Self::Calling { .. } => Self::Calling { awaited_since },
            Self::ForgottenCalling { .. } => Self::ForgottenCalling { awaited_since },
            other => other,
        }
    }
}

/// A failed call, and the number of calls that failed in a row.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub error: ObtainError,
    /// Until then, requests get the error and start no call.
    pub retry_at: Instant,
    /// The number of calls that failed one after the other, this one included.
    pub attempts: u32,
    /// When the first of them began.
    pub since: Instant,
}

/// An event that happens to a session from outside.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// A pod asks for the session.
    Asked { pod: &'a PodUid, by: Asker },
    /// STS answered a call, or could not be asked. `jitter` is at random from 0 to 1.
    CallEnded {
        result: Result<Session, ObtainError>,
        began: Instant,
        jitter: f64,
    },
    /// A call that was planned is not made, or ended without a result.
    CallDropped,
    /// The timer that was set after this number of calls fires.
    TimerFired { calls: u64 },
    /// No pod has the session any more.
    Forgotten,
}

/// The kind of asker that asks for a session on behalf of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    /// A request that can wait for a call.
    Request,
    /// A request whose deadline has come.
    RequestAtDeadline,
    /// The agent, when a pod with a role appears. It waits for nothing.
    Prefetch,
}

/// The actions of the cache after a step.
#[derive(Debug, Default)]
pub(super) struct Actions {
    /// The answer to the asker; `None` after any other event.
    pub answer: Option<Answer>,
    pub next: Next,
    /// The report for the log; `None` unless a call has ended.
    pub report: Option<Report>,
    /// Whether tasks that wait for a change of the state have to check it again.
    pub notify: bool,
}

/// How a call ended, for the log.
#[derive(Debug)]
pub(super) enum Report {
    Obtained {
        session: Session,
        /// The failure that this call ends.
        before: Option<Failure>,
        /// Whether a request waited for the call.
        was_awaited: bool,
    },
    Failed {
        failure: Failure,
        /// The failure of the call before.
        before: Option<Failure>,
    },
}

/// The answer to a request for a session.
#[derive(Clone, Debug)]
pub(super) enum Answer {
    Serve(Session),
    Fail(SessionError),
    /// It has to wait until the call is over, and ask again.
    Wait,
}

/// The next action of the task that calls STS and renews the session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Next {
    /// It ends, or is not started.
    #[default]
    Nothing,
    /// It calls STS.
    Call,
    /// It waits, and then reports `TimerFired` with `calls`.
    Timer { after: Duration, calls: u64 },
}

/// Returns the state after an event, and what the cache has to do about it.
pub(super) fn step(state: State, event: Event<'_>, now: Now) -> (State, Actions) {
    match event {
        Event::Asked { pod, by } => asked(state, pod, by, now),
        Event::CallEnded {
            result,
            began,
            jitter,
        } => call_ended(state, result, began, jitter, now),
        Event::CallDropped => call_over(state, Phase::Idle, Next::Nothing),
        Event::TimerFired { calls } if calls == state.calls => timer_fired(state, now),
        Event::TimerFired { .. } => (state, Actions::default()),
        Event::Forgotten => forgotten(state),
    }
}

fn asked(mut state: State, pod: &PodUid, by: Asker, now: Now) -> (State, Actions) {
    let session = state.session.as_ref();
    let valid = session.filter(|session| !session.left(now.wall).is_zero());
    let is_young = valid.is_some_and(|session| !session.is_past_half(now.wall));
    let has_enough = is_young || valid.is_some_and(|session| session.left(now.wall) >= MIN_LEFT);
    let failure = state.failure.as_ref();
    let recent_failure = failure.filter(|failure| failure.retry_at > now.monotonic);

    let needs_no_call = is_young && state.phase != Phase::LetGo;
    let is_due = !needs_no_call && !state.phase.is_calling() && recent_failure.is_none();
    let starts = is_due && !state.phase.is_forgotten();
    let is_calling = starts || state.phase.is_calling();
    let may_wait = by == Asker::Request && is_calling;

    let answer = match (valid, recent_failure) {
        (Some(session), _) if has_enough || !may_wait => Answer::Serve(session.clone()),
        (None, Some(failure)) if !is_calling => Answer::Fail(failure.error.clone().into()),
        (None, _) if is_due && !starts => Answer::Fail(SessionError::Forgotten),
        (None, _) if !may_wait => Answer::Fail(late(&state)),
        _ => Answer::Wait,
    };

    let is_another_pod = is_calling && state.turn.ask(pod);
    let was_awaited = state.phase.awaited_since().is_some();
    state.phase = match state.phase {
        _ if starts => Phase::Calling { awaited_since: None },
        Phase::Unused => Phase::InUse,
        other => other,
    };
    let waits = matches!(answer, Answer::Wait);
    if waits {
        state.phase = state.phase.awaited(now.monotonic);
    }
    let actions = Actions {
        answer: Some(answer),
        next: if starts { Next::Call } else { Next::Nothing },
        report: None,
        // The task of a call that starts checks the state first anyway.
        notify: !starts && (is_another_pod || waits && !was_awaited),
    };
    (state, actions)
}

fn call_ended(
    mut state: State,
    result: Result<Session, ObtainError>,
    began: Instant,
    jitter: f64,
    now: Now,
) -> (State, Actions) {
    let before = state.failure.take();
    let (phase, after, report) = match result {
        Ok(session) => {
            let after = until_renewal(&session, now.wall, jitter);
            state.session = Some(session.clone());
            let report = Report::Obtained {
                session,
                before,
                was_awaited: state.phase.awaited_since().is_some(),
            };
            (Phase::Unused, Some(after), report)
        }
        Err(error) => {
            let attempts = before.as_ref().map_or(0, |failure| failure.attempts) + 1;
            let after = background_retry_after(&error, attempts, jitter);
            let failure = Failure {
                retry_at: now.monotonic + request_retry_after(&error, attempts),
                error,
                attempts,
                since: before.as_ref().map_or(began, |failure| failure.since),
            };
            state.failure = Some(failure.clone());
            let phase = if after.is_some() {
                Phase::Retrying
            } else {
                Phase::Idle
            };
            (phase, after, Report::Failed { failure, before })
        }
    };
    let calls = state.calls + 1;
    let next = after.map_or(Next::Nothing, |after| Next::Timer { after, calls });
    let (state, actions) = call_over(state, phase, next);
    let report = Some(report);
    (state, Actions { report, ..actions })
}

/// Ends a call, with or without a result. Requests that wait for the call check the state again.
fn call_over(mut state: State, phase: Phase, next: Next) -> (State, Actions) {
    let is_forgotten = state.phase.is_forgotten();
    state.phase = if is_forgotten { Phase::Forgotten } else { phase };
    state.calls += 1;
    let actions = Actions {
        next: if is_forgotten { Next::Nothing } else { next },
        notify: true,
        ..Actions::default()
    };
    (state, actions)
}

fn timer_fired(mut state: State, now: Now) -> (State, Actions) {
    let mut actions = Actions::default();
    match state.phase {
        Phase::InUse | Phase::Retrying => {
            state.phase = Phase::Calling { awaited_since: None };
            actions.next = Next::Call;
        }
        Phase::Unused | Phase::LetGo => {
            let session = state.session.as_ref();
            let left = session.map_or(Duration::ZERO, |session| session.left(now.wall));
            if left.is_zero() {
                state.phase = Phase::Idle;
                state.session = None;
                actions.notify = true;
            } else {
                state.phase = Phase::LetGo;
                actions.next = Next::Timer {
                    after: left,
                    calls: state.calls,
                };
            }
        }
        Phase::Idle | Phase::Calling { .. } | Phase::Forgotten | Phase::ForgottenCalling { .. } => {}
    }
    (state, actions)
}

fn forgotten(mut state: State) -> (State, Actions) {
    state.phase = match state.phase {
        Phase::Calling { awaited_since } | Phase::ForgottenCalling { awaited_since } => {
            Phase::ForgottenCalling { awaited_since }
        }
        _ => Phase::Forgotten,
    };
    let actions = Actions {
        notify: true,
        ..Actions::default()
    };
    (state, actions)
}

/// Returns why there is no session at the deadline, while a call is under way or about to be.
fn late(state: &State) -> SessionError {
    if state.turn.until().is_some() {
        return SessionError::Paced;
    }
    unanswered(state.failure.as_ref().map(|failure| &failure.error)).into()
}

/// Returns why a request gets no session while STS has not answered: the failure before, if STS could not be asked
/// then.
pub(super) fn unanswered(failure: Option<&ObtainError>) -> ObtainError {
    match failure {
        Some(error @ ObtainError::Unavailable(_)) => error.clone(),
        _ => ObtainError::Unavailable("STS has not answered yet; try again shortly".to_owned()),
    }
}

#[cfg(test)]
mod tests;
