//! One watch that never ends: kube's watcher, begun anew where it would ask in vain.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt as _, unfold};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;

use crate::apiserver::error_text;

/// Waiting time after a first failure; doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(250);

/// Longest waiting time after failures: pods are served with what is known, and 5,000 nodes try.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// A watch that has not failed for this long has recovered; longer than the longest wait
/// and than what most attempts take.
const HELD: Duration = Duration::from_secs(60);

/// For each object of a list, the first one included.
const LIST: Duration = Duration::from_secs(90);

/// Events, and failures in words.
pub type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, String>> + Send>>;

type Watcher<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

/// Lists, then watches; after a failure goes on where it was.
pub fn events<K>(api: Api<K>, config: watcher::Config) -> Events<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || -> Watcher<K> { watcher(api.clone(), config.clone()).boxed() };
    let state = State {
        watcher: begin(),
        is_listing: true,
        pause: Pause::default(),
        wait: None,
    };
    unfold((begin, state), |(begin, mut state)| async move {
        if let Some(wait) = state.wait.take() {
            tokio::time::sleep(wait).await;
        }
        let next = state.watcher.next();
        // A list may begin, and then never end; a watch is looked after by kube.
        let next = match state.is_listing {
            true => tokio::time::timeout(LIST, next).await,
            false => Ok(next.await),
        };
        let failure = match next {
            Ok(Some(Ok(event))) => {
                state.is_listing = matches!(event, Event::Init | Event::InitApply(_));
                return Some((Ok(event), (begin, state)));
            }
            Ok(Some(Err(error))) => {
                if is_forgotten(&error) {
                    (state.watcher, state.is_listing) = (begin(), true);
                }
                said(&error)
            }
            Ok(None) | Err(_) => {
                let listed = state.is_listing;
                (state.watcher, state.is_listing) = (begin(), true);
                if listed {
                    format!("the API server did not tell them within {} s", LIST.as_secs())
                } else {
                    "the watch has ended".to_owned()
                }
            }
        };
        state.wait = Some(state.pause.after_failure());
        Some((Err(failure), (begin, state)))
    })
    .boxed()
}

struct State<K> {
    watcher: Watcher<K>,
    is_listing: bool,
    pause: Pause,
    wait: Option<Duration>,
}

/// Where the API server no longer knows the version from which to go on (410), or does not know it yet (504, after it was
/// set back to an older state), before the watch has begun. kube would ask for the same version for ever. A gateway's own
/// 504 says nothing of that.
fn is_forgotten(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            status.code == 410 || (status.code == 504 && status.message.contains("resource version"))
        }
        _ => false,
    }
}

fn said(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => error_text(error),
        watcher::Error::WatchError(status) => error_text(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Waiting times after failures. Attempts begin with events that are no failures, and watches that work may say nothing
/// for days, so it is time that tells whether one has recovered.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    last: Option<Instant>,
}

impl Pause {
    /// Nodes do not come all at once.
    fn after_failure(&mut self) -> Duration {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last >= HELD) {
            self.failures = 0;
        }
        let longest = BACKOFF
            .saturating_mul(1 << self.failures.min(16))
            .min(MAX_BACKOFF);
        self.failures += 1;
        self.last = Some(now);
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_grow_to_some_seconds_until_a_watch_has_held() {
        let mut pause = Pause::default();
        let waits: Vec<f64> = (0..8).map(|_| pause.after_failure().as_secs_f64()).collect();
        assert!((0.125..=0.25).contains(&waits[0]), "{waits:?}");
        assert!(
            waits[7] >= 4.0 && waits.iter().all(|wait| *wait <= 8.0),
            "{waits:?}"
        );
        pause.last = pause.last.and_then(|last| last.checked_sub(HELD));
        assert!(pause.after_failure().as_secs_f64() <= 0.25);
    }

    #[test]
    fn only_what_the_api_server_has_forgotten_is_listed_again() {
        let failed = |code, message: &str| {
            let status = kube::core::Status {
                code,
                message: message.to_owned(),
                ..kube::core::Status::default()
            };
            watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status)))
        };
        assert!(is_forgotten(&failed(410, "too old resource version")));
        assert!(is_forgotten(&failed(
            504,
            "Timeout: Too large resource version: 7, current: 5"
        )));
        assert!(!is_forgotten(&failed(504, "Gateway Time-out")));
        assert!(!is_forgotten(&failed(500, "resource version")));
    }
}
