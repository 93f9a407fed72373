//! Builds a watch that never ends from kube's watcher. The watcher is started again if it cannot recover by itself.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt as _, unfold};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;

use crate::apiserver::error_text;

/// The waiting time after a first failure. It doubles with each further failure.
const MIN_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// The maximum waiting time after failures. It can be long, because pods are served with the known objects meanwhile.
/// It must be long, because 5,000 nodes may retry.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(8);

/// The time without a failure after which a watch counts as recovered. It is longer than the maximum waiting time and
/// longer than most attempts.
const RECOVERY_TIME: Duration = Duration::from_secs(60);

/// The time limit of each object of a list.
const LIST_TIMEOUT: Duration = Duration::from_secs(90);

/// The events of a watch, and the texts of its failures.
pub type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, String>> + Send>>;

type Watcher<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

/// Lists objects and then watches them. After a failure, the watch continues from the last version.
pub fn events<K>(api: Api<K>, config: watcher::Config) -> Events<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || -> Watcher<K> { watcher(api.clone(), config.clone()).boxed() };
    let state = State {
        watcher: begin(),
        is_listing: true,
        retry_delay: RetryDelay::default(),
        wait: None,
    };
    unfold((begin, state), |(begin, mut state)| async move {
        if let Some(wait) = state.wait.take() {
            tokio::time::sleep(wait).await;
        }
        let next = state.watcher.next();
        // A list's connection may stall, and kube has no time limit for lists. It has one for watches.
        let next = match state.is_listing {
            true => tokio::time::timeout(LIST_TIMEOUT, next).await,
            false => Ok(next.await),
        };
        let failure = match next {
            Ok(Some(Ok(event))) => {
                state.is_listing = matches!(event, Event::Init | Event::InitApply(_));
                return Some((Ok(event), (begin, state)));
            }
            Ok(Some(Err(error))) => {
                if is_version_lost(&error) {
                    (state.watcher, state.is_listing) = (begin(), true);
                }
                watch_error_text(&error)
            }
            Ok(None) | Err(_) => {
                let listed = state.is_listing;
                (state.watcher, state.is_listing) = (begin(), true);
                if listed {
                    format!(
                        "the API server did not list them within {} s",
                        LIST_TIMEOUT.as_secs()
                    )
                } else {
                    "the watch has ended".to_owned()
                }
            }
        };
        state.wait = Some(state.retry_delay.after_failure());
        Some((Err(failure), (begin, state)))
    })
    .boxed()
}

struct State<K> {
    watcher: Watcher<K>,
    is_listing: bool,
    retry_delay: RetryDelay,
    wait: Option<Duration>,
}

/// Reports whether a watch cannot start because the API server does not have its version. The server answers 410 if
/// it does not have the version any more, and 504 if it does not have it yet, after it was restored to an older
/// state. kube would request the same version for ever. A gateway's 504 does not mention the version.
fn is_version_lost(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 410 || (status.code == 504 && status.message.contains("resource version"))
        }
        _ => false,
    }
}

fn watch_error_text(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error_text(error),
        watcher::Error::WatchError(status) => error_text(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Computes waiting times after failures. Only the time without a failure shows that a watch has recovered. Events do
/// not: a failing attempt also begins with events that are not failures, and a working watch may have no event for
/// days.
#[derive(Debug, Default)]
struct RetryDelay {
    failures: u32,
    last: Option<Instant>,
}

impl RetryDelay {
    /// Returns the waiting time after a failure, with jitter, so that nodes do not retry all at once.
    fn after_failure(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last >= RECOVERY_TIME) {
            self.failures = 0;
        }
        let longest = MIN_RETRY_INTERVAL
            .saturating_mul(1 << self.failures.min(16))
            .min(MAX_RETRY_INTERVAL);
        self.failures += 1;
        self.last = Some(now);
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_grow_to_some_seconds_until_a_watch_has_recovered() {
        let mut retry_delay = RetryDelay::default();
        let waits: Vec<f64> = (0..8)
            .map(|_| retry_delay.after_failure().as_secs_f64())
            .collect();
        assert!((0.125..=0.25).contains(&waits[0]), "{waits:?}");
        assert!(
            waits[7] >= 4.0 && waits.iter().all(|wait| *wait <= 8.0),
            "{waits:?}"
        );
        retry_delay.last = retry_delay.last.and_then(|last| last.checked_sub(RECOVERY_TIME));
        assert!(retry_delay.after_failure().as_secs_f64() <= 0.25);
    }

    #[test]
    fn objects_are_listed_again_only_if_the_api_server_does_not_have_the_version() {
        let failed = |code, message: &str| {
            let status = kube::core::Status {
                code,
                message: message.to_owned(),
                ..kube::core::Status::default()
            };
            watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status)))
        };
        assert!(is_version_lost(&failed(410, "too old resource version")));
        assert!(is_version_lost(&failed(
            504,
            "Timeout: Too large resource version: 7, current: 5"
        )));
        assert!(!is_version_lost(&failed(504, "Gateway Time-out")));
        assert!(!is_version_lost(&failed(500, "resource version")));
    }
}
