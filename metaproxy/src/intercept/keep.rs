//! Keeps programs attached. The redirection's attachment and the guard share this loop.

use std::fmt::Display;
use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::error;

/// The interval at which cgroup and links are checked. If its cgroup was removed or it was detached, a link stays
/// open without effect, and the kernel sends no notice. A check costs one `stat` for the pods' cgroup, one for each
/// listed hostNetwork pod, and one small file for each link.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Programs that have to stay attached.
pub trait Keep: Send {
    /// The result of a check.
    type State: PartialEq + Send + Sync;

    /// Attaches all programs that are not attached, and returns the state after that.
    fn check(&mut self) -> Self::State;

    /// Waits for a reason to check before the interval is over. Must be cancel safe. [`ControlFlow::Break`] ends the
    /// loop, because changes that the programs depend on can no longer be monitored.
    fn changed(&mut self) -> impl Future<Output = ControlFlow<()>> + Send;
}

/// Keeps programs attached until `stop` fires, and publishes each change of their state. Returns the programs.
pub async fn keep<K: Keep>(
    mut programs: K,
    state: watch::Sender<K::State>,
    mut stop: oneshot::Receiver<()>,
) -> K {
    let mut checks = tokio::time::interval(CHECK_INTERVAL);
    checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = &mut stop => return programs,
            _ = checks.tick() => {}
            flow = programs.changed() => if flow.is_break() {
                return programs;
            },
        }
        let now = programs.check();
        state.send_if_modified(|state| {
            let is_new = *state != now;
            *state = now;
            is_new
        });
    }
}

/// The failure of the last check. It is logged when it is new, and not again at each check.
#[derive(Debug, Default)]
pub(super) struct LastFailure(Option<String>);

impl LastFailure {
    /// Replaces the failure by a check's result. `effect` is the failure's consequence, for the log line.
    pub fn record<E: Display>(&mut self, effect: &str, result: Result<(), E>) {
        let failure = result.err().map(|error| error.to_string());
        if let Some(why) = &failure
            && failure != self.0
        {
            error!("{effect}: {why}");
        }
        self.0 = failure;
    }

    /// Returns whether the last check has succeeded.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts checks, and gets changes through a channel.
    struct Counted {
        checks: u32,
        changes: watch::Receiver<()>,
    }

    impl Keep for Counted {
        type State = u32;

        fn check(&mut self) -> u32 {
            self.checks += 1;
            self.checks
        }

        async fn changed(&mut self) -> ControlFlow<()> {
            match self.changes.changed().await {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn programs_are_checked_at_each_interval_and_change_until_they_are_stopped() {
        let (change, changes) = watch::channel(());
        let (publish, mut state) = watch::channel(0);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(keep(Counted { checks: 0, changes }, publish, stopped));
        let start = tokio::time::Instant::now();
        state.wait_for(|checks| *checks == 3).await.unwrap();
        assert_eq!(
            start.elapsed(),
            2 * CHECK_INTERVAL,
            "the first check is made at once"
        );
        change.send_replace(());
        state.wait_for(|checks| *checks == 4).await.unwrap();
        assert_eq!(start.elapsed(), 2 * CHECK_INTERVAL, "a change is not waited out");
        stop.send(()).unwrap();
        assert_eq!(task.await.unwrap().checks, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn programs_are_returned_when_changes_cannot_be_monitored() {
        let (change, changes) = watch::channel(());
        let (publish, _state) = watch::channel(0);
        let (_stop, stopped) = oneshot::channel();
        drop(change);
        keep(Counted { checks: 0, changes }, publish, stopped).await;
    }
}
