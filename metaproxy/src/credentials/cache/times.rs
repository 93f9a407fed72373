//! Computes when sessions are renewed, and when STS is called again after a call failed.

use std::time::{Duration, SystemTime};

use backon::{BackoffBuilder as _, ExponentialBuilder};

use crate::credentials::{ObtainError, Session};

/// The part of its life after which a session is renewed.
const RENEWAL: f64 = 0.5;

/// The part of its life by which a session is renewed earlier, at random: sessions that were obtained together are
/// not renewed together.
const RENEWAL_JITTER: f64 = 0.05;

/// The minimum time until a renewal. Without it, an STS that issues sessions which are about to expire would be
/// called without end.
const MIN_RENEWAL_INTERVAL: Duration = Duration::from_secs(1);

/// How long requests get the refusal of STS before it is called again.
const DENIED_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The backoff after a first transient failure. It doubles with each further one.
const MIN_BACKOFF: Duration = Duration::from_millis(500);

/// The maximum backoff after transient failures if a request asks for the session.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// The maximum backoff if no request asks. Up to as much is added at random, so a call follows within 600 s: all
/// nodes of a cluster try again after an outage, and must not do so at once.
const MAX_BACKGROUND_BACKOFF: Duration = Duration::from_secs(300);

/// Returns how long it is until a session is renewed. `jitter` is at random from 0 to 1.
pub(super) fn until_renewal(session: &Session, now: SystemTime, jitter: f64) -> Duration {
    let part = RENEWAL - RENEWAL_JITTER * jitter;
    let lived = session.life().saturating_sub(session.left(now));
    session
        .life()
        .mul_f64(part)
        .saturating_sub(lived)
        .max(MIN_RENEWAL_INTERVAL)
}

/// Returns the backoff after this number of failures, from 1.
fn backoff(attempts: u32, longest: Duration) -> Duration {
    let backoff = ExponentialBuilder::new()
        .with_min_delay(MIN_BACKOFF)
        .with_max_delay(longest)
        .without_max_times();
    // Each of the first delays is computed. The maximum is reached by the 16th.
    let earlier = attempts.saturating_sub(1).min(16);
    backoff.build().nth(earlier as usize).unwrap_or(longest)
}

/// Returns how long requests get the error before STS is called again. `attempts` counts the calls that failed, from
/// 1.
pub(super) fn request_retry_after(error: &ObtainError, attempts: u32) -> Duration {
    match error {
        ObtainError::Denied(_) | ObtainError::NoToken(_) => DENIED_RETRY_INTERVAL,
        ObtainError::Unavailable(_) => backoff(attempts, MAX_BACKOFF),
    }
}

/// Returns when to call STS again without a request; `None` if the answer stays the same until a role, a policy or a
/// right is changed. It is never before requests may start a call. `jitter` is at random from 0 to 1.
pub(super) fn background_retry_after(error: &ObtainError, attempts: u32, jitter: f64) -> Option<Duration> {
    match error {
        ObtainError::Denied(_) | ObtainError::NoToken(_) => None,
        ObtainError::Unavailable(_) => Some(backoff(attempts, MAX_BACKGROUND_BACKOFF).mul_f64(1.0 + jitter)),
    }
}
