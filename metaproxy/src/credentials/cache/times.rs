//! When sessions are renewed, and when STS is asked again after it gave none.

use std::time::{Duration, SystemTime};

use crate::credentials::{ObtainError, Session};
use crate::telemetry::metrics::StsOutcome;

/// The part of its life after which a session is renewed, and how much earlier it may be: sessions that were obtained
/// together are not renewed together.
const RENEWAL: f64 = 0.5;
const RENEWAL_JITTER: f64 = 0.05;

/// How long a refusal of STS is remembered.
const DENIED_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// Waiting time after a first transient failure; doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(500);

/// Longest waiting time after transient failures where somebody asks.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// And where nobody does: all nodes of a cluster try again after an outage.
const MAX_BACKGROUND_BACKOFF: Duration = Duration::from_secs(300);

pub(super) fn until_renewal(session: &Session, now: SystemTime) -> Duration {
    let part = RENEWAL - RENEWAL_JITTER * fastrand::f64();
    let lived = session.life().saturating_sub(session.left(now));
    session
        .life()
        .mul_f64(part)
        .saturating_sub(lived)
        .max(Duration::from_secs(1))
}

fn doubled(attempts: u32, longest: Duration) -> Duration {
    MIN_BACKOFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(16))
        .min(longest)
}

pub(super) fn outcome(result: &Result<Session, ObtainError>) -> StsOutcome {
    match result {
        Ok(_) => StsOutcome::Issued,
        Err(ObtainError::Denied(_)) => StsOutcome::Denied,
        Err(ObtainError::NoToken(_)) => StsOutcome::NoToken,
        Err(ObtainError::Unavailable(_)) => StsOutcome::Unavailable,
    }
}

/// How long requests are answered with the error instead of asking STS again.
pub(super) fn request_retry_after(error: &ObtainError, attempts: u32) -> Duration {
    match error {
        ObtainError::Denied(_) | ObtainError::NoToken(_) => DENIED_RETRY_INTERVAL,
        ObtainError::Unavailable(_) => doubled(attempts, MAX_BACKOFF),
    }
}

/// When to ask again without a request; never, where only somebody's doing can change the answer.
pub(super) fn background_retry_after(error: &ObtainError, attempts: u32) -> Option<Duration> {
    match error {
        ObtainError::Denied(_) | ObtainError::NoToken(_) => None,
        // Never before requests may: up to as long again, so that nodes do not come all at once.
        ObtainError::Unavailable(_) => {
            Some(doubled(attempts, MAX_BACKGROUND_BACKOFF).mul_f64(1.0 + fastrand::f64()))
        }
    }
}
