//! One watch that never ends: kube's watcher, begun anew where it would ask in vain.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::stream::{Stream, StreamExt as _, unfold};
use kube::Api;
use kube::runtime::watcher::{self, Event, watcher};
use serde::de::DeserializeOwned;

use crate::apiserver::words;

/// Waiting time after a first failure; doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(250);

/// Longest waiting time after failures: pods are served with what is known, and 5,000 nodes try.
const MAX_BACKOFF: Duration = Duration::from_secs(8);

/// A watch that has held for this long has recovered.
const HELD: Duration = Duration::from_secs(20);

/// Events, and failures in words.
pub type Events<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, String>> + Send>>;

type Watcher<K> = Pin<Box<dyn Stream<Item = Result<Event<K>, watcher::Error>> + Send>>;

/// Lists, then watches; after a failure goes on where it was.
pub fn events<K>(api: Api<K>, config: watcher::Config) -> Events<K>
where
    K: kube::Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let begin = move || -> Watcher<K> { watcher(api.clone(), config.clone()).boxed() };
    let (watcher, pause) = (begin(), Pause::default());
    unfold(
        (begin, watcher, pause, None),
        |(begin, mut watcher, mut pause, wait)| async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            let item = match watcher.next().await {
                Some(Ok(event)) => {
                    pause.works();
                    return Some((Ok(event), (begin, watcher, pause, None)));
                }
                Some(Err(error)) => {
                    if is_forgotten(&error) {
                        watcher = begin();
                    }
                    Err(said(&error))
                }
                None => {
                    watcher = begin();
                    Err("the watch has ended".to_owned())
                }
            };
            let wait = pause.after_failure();
            Some((item, (begin, watcher, pause, Some(wait))))
        },
    )
    .boxed()
}

/// Where the API server no longer knows the version from which to go on (410), or does not know it yet (504, after it was
/// set back to an older state), before the watch has begun. kube would ask for the same version for ever.
fn is_forgotten(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if matches!(status.code, 410 | 504))
}

fn said(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => words(error),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// Waiting times after failures. Each attempt at a list begins with an event that is no failure, so it is time that tells
/// whether a watch has recovered.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    last: Option<Instant>,
}

impl Pause {
    fn works(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() >= HELD) {
            *self = Self::default();
        }
    }

    /// Nodes do not come all at once.
    fn after_failure(&mut self) -> Duration {
        let longest = BACKOFF
            .saturating_mul(1 << self.failures.min(16))
            .min(MAX_BACKOFF);
        self.failures += 1;
        self.last = Some(Instant::now());
        longest.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_grow_to_some_seconds_and_an_attempt_does_not_set_them_back() {
        let mut pause = Pause::default();
        let waits: Vec<f64> = (0..8)
            .map(|_| {
                pause.works();
                pause.after_failure().as_secs_f64()
            })
            .collect();
        assert!((0.125..=0.25).contains(&waits[0]), "{waits:?}");
        assert!(
            waits[7] >= 4.0 && waits.iter().all(|wait| *wait <= 8.0),
            "{waits:?}"
        );
    }
}
