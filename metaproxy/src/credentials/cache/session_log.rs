//! Logs sessions: a failure once, whatever the number of attempts, and its end. The number of lines of both is
//! limited, because an outage of STS fails the sessions of all pods of a node.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::state::Failure;
use crate::credentials::{ObtainError, Session, SessionKey};
use crate::telemetry::log_limiter::LogLimiter;

/// The time after which a call is slow. The requests that wait for a slow call are answered 503.
pub(super) const SLOW_CALL_THRESHOLD: Duration = Duration::from_millis(800);

/// The minimum number of characters of a word of a message that is taken for an ID or a time. The word must also have
/// a digit.
const MIN_ID_LENGTH: usize = 8;

/// Writes the log lines of sessions.
#[derive(Debug)]
pub(super) struct SessionLog {
    failures: LogLimiter,
    recoveries: LogLimiter,
    slow: LogLimiter,
    paced: LogLimiter,
}

impl Default for SessionLog {
    fn default() -> Self {
        Self {
            failures: LogLimiter::new(|more| {
                warn!("no session: and {more} more; `metaproxy status` has each with its error");
            }),
            recoveries: LogLimiter::new(|more| info!("session obtained: and {more} more")),
            slow: LogLimiter::new(|more| warn!("an STS call took too long: and {more} more")),
            paced: LogLimiter::new(|more| warn!("a new session waits for its pod's turn: and {more} more")),
        }
    }
}

impl SessionLog {
    /// Logs a failed call. `before` is the failure of the call before it.
    pub(super) fn failed(&self, key: &SessionKey, before: Option<&Failure>, now: &Failure) {
        let Failure { error, attempts, .. } = now;
        // The same text as in the pod's response and event.
        let reason = error.reason(&key.role);
        let is_news = before.is_none_or(|before| !is_same(&before.error, error));
        if is_news && self.failures.may_log() {
            warn!(role = %key.role, session = %key.shape.name, attempts, "no session: {reason}");
        } else {
            debug!(role = %key.role, session = %key.shape.name, attempts, "no session: {reason}");
        }
    }

    /// Logs a session that was obtained, and the failures that it ends.
    pub(super) fn obtained(&self, key: &SessionKey, session: &Session, failure: Option<&Failure>) {
        debug!(role = %key.role, session = %key.shape.name, "obtained {session:?}");
        let Some(failure) = failure.filter(|_| self.recoveries.may_log()) else {
            return;
        };
        info!(
            role = %key.role,
            session = %key.shape.name,
            failures = failure.attempts,
            "session obtained; before that it failed for {} s ({})",
            failure.since.elapsed().as_secs(),
            brief(&failure.error),
        );
    }

    /// Logs that STS is called for a new session only after this wait.
    pub(super) fn paced(&self, key: &SessionKey, wait: Duration) {
        if self.paced.may_log() {
            warn!(
                role = %key.role,
                session = %key.shape.name,
                "a new session waits {:.1} s for its pod's turn: what shapes the pod's session changes too often",
                wait.as_secs_f64(),
            );
        }
    }

    /// Logs a call that requests waited for, if it was slow.
    pub(super) fn waited(&self, key: &SessionKey, began: Instant) {
        let took = began.elapsed();
        if took > SLOW_CALL_THRESHOLD && self.slow.may_log() {
            warn!(
                role = %key.role,
                session = %key.shape.name,
                "an STS call took {:.1} s, which is longer than a request waits; the pod was answered 503",
                took.as_secs_f64(),
            );
        }
    }
}

/// Returns whether two failures are the same apart from request IDs and times.
fn is_same(one: &ObtainError, other: &ObtainError) -> bool {
    let lasting = |error: &ObtainError| {
        let text = error.to_string();
        let is_id =
            |word: &&str| word.len() >= MIN_ID_LENGTH && word.bytes().any(|byte| byte.is_ascii_digit());
        let words: Vec<String> = text
            .split_whitespace()
            .filter(|word| !is_id(word))
            .map(str::to_owned)
            .collect();
        words
    };
    std::mem::discriminant(one) == std::mem::discriminant(other) && lasting(one) == lasting(other)
}

fn brief(error: &ObtainError) -> &'static str {
    match error {
        ObtainError::Denied(_) => "STS denied it",
        ObtainError::NoToken(_) => "the API server gave no token",
        ObtainError::Unavailable(_) => "STS could not be asked",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::the_same("down", "down", true)]
    #[case::another("down", "up", false)]
    #[case::another_status("HTTP status 403", "HTTP status 502", false)]
    #[case::another_id("failed (4c1f8a2e-1f7e-4f9b)", "failed (77f00121-0a9c-4e11)", true)]
    #[case::another_time(
        "Signature expired: 20261128T212303Z is now earlier than 20261128T212803Z",
        "Signature expired: 20261128T212404Z is now earlier than 20261128T212904Z",
        true
    )]
    fn a_failure_is_news_unless_only_ids_and_times_differ(
        #[case] one: &str,
        #[case] other: &str,
        #[case] want: bool,
    ) {
        let [one, other] = [one, other].map(str::to_owned);
        let unavailable = ObtainError::Unavailable;
        assert_eq!(is_same(&unavailable(one.clone()), &unavailable(other)), want);
        assert!(!is_same(&unavailable(one.clone()), &ObtainError::Denied(one)));
    }
}
