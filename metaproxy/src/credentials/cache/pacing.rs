//! Limits how often a pod may have a new session. Annotations shape a session, and a tenant can change them hundreds
//! of times a second. Without a limit, each change would cause an STS call and a line of the audit log.
//!
//! A session is new if STS was never called for it. Renewals and retries have intervals of their own and are not
//! limited here. A pod's turn is taken when STS is about to be called, so a session that is forgotten while it waits
//! takes none.
//!
//! Pods themselves can be created hundreds of times a second. So new sessions that no request waits for have a limit
//! for the whole node as well.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::state::State;
use super::{Issuer, Sessions, Slot};
use crate::credentials::SessionKey;
use crate::pods::PodUid;
use crate::rate_limiter::RateLimiter;
use crate::telemetry::metrics::{TurnOutcome, Turns};

/// The maximum number of new sessions that a pod may have at once. A pod has one in its life, and one more for each
/// change of its role, external ID, session name or service account. A deployment tool that annotates step by step
/// causes several within seconds.
pub const MAX_SESSIONS_AT_ONCE: u32 = 5;

/// The time between two new sessions of a pod when [`MAX_SESSIONS_AT_ONCE`] are used up. If all 250 pods of a node
/// change all the time, they cause 125 calls a second. An account has 600 calls a second in a region (AWS STS
/// quotas). The last change takes effect within this time.
pub const NEW_SESSION_INTERVAL: Duration = Duration::from_secs(2);

/// The maximum number of new sessions of the node at once that no request waits for. An agent that starts obtains one
/// for each pod of its node.
pub(super) const MAX_AHEAD_AT_ONCE: u32 = 250;

/// The time between two new sessions that no request waits for, when [`MAX_AHEAD_AT_ONCE`] are used up. A kubelet
/// starts fewer than ten pods a second. But a user who may create pods can bind any number to a node
/// (`spec.nodeName`). The kubelet refuses those. They have no process, so no request ever waits for their sessions.
const AHEAD_INTERVAL: Duration = Duration::from_millis(100);

/// Whether STS may be called for a session.
#[derive(Debug)]
pub(super) enum Turn {
    /// STS may be called when one of these pods, which ask for the session, has a turn.
    Awaited {
        /// The pods, each once.
        pods: Vec<PodUid>,
        /// When the first of them has a turn, if that is known.
        until: Option<Instant>,
    },
    /// STS may be called now, or was called before.
    Taken,
}

impl Default for Turn {
    fn default() -> Self {
        Self::Awaited {
            pods: Vec::new(),
            until: None,
        }
    }
}

impl Turn {
    /// Adds a pod that asks for the session. Returns whether it was not there yet. If so, its turn may come first.
    pub fn ask(&mut self, pod: &PodUid) -> bool {
        match self {
            Self::Awaited { pods, .. } if !pods.contains(pod) => {
                pods.push(pod.clone());
                true
            }
            _ => false,
        }
    }

    /// Returns when STS may be called; `None` if no turn is waited for.
    pub fn until(&self) -> Option<Instant> {
        match self {
            Self::Awaited { until, .. } => *until,
            Self::Taken => None,
        }
    }
}

/// The limit of each pod that had a new session recently, and the node's limit for sessions that no request waits
/// for.
#[derive(Debug)]
pub(super) struct Pacing {
    pods: Mutex<HashMap<PodUid, RateLimiter>>,
    ahead: RateLimiter,
    /// The task that waits for the node's next turn holds this lock. Other tasks wait for the lock in order.
    next_ahead: tokio::sync::Mutex<()>,
    pub turns: Turns,
}

impl Default for Pacing {
    fn default() -> Self {
        let now = Instant::now().into_std();
        Self {
            pods: Mutex::default(),
            ahead: RateLimiter::new(AHEAD_INTERVAL, MAX_AHEAD_AT_ONCE, now),
            next_ahead: tokio::sync::Mutex::default(),
            turns: Turns::default(),
        }
    }
}

impl Pacing {
    /// Takes a turn of the first of these pods that has one.
    ///
    /// # Errors
    /// Returns how long it is until one of them has a turn.
    fn take(&self, pods: &[PodUid]) -> Result<(), Duration> {
        let now = Instant::now().into_std();
        let mut limiters = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shortest = NEW_SESSION_INTERVAL;
        for pod in pods {
            if !limiters.contains_key(pod) {
                // Limiters that are as good as new are dropped, so the map holds the pods of the last ten seconds
                // only.
                limiters.retain(|_, limiter| !limiter.is_idle(now));
            }
            let limiter = limiters
                .entry(pod.clone())
                .or_insert_with(|| RateLimiter::new(NEW_SESSION_INTERVAL, MAX_SESSIONS_AT_ONCE, now));
            match limiter.try_take(now) {
                Ok(()) => return Ok(()),
                Err(wait) => shortest = shortest.min(wait),
            }
        }
        Err(shortest)
    }

    /// Waits for a turn of the node. Returns whether it had to wait.
    async fn turn_ahead(&self) -> bool {
        let _next = self.next_ahead.lock().await;
        let mut has_waited = false;
        while let Err(wait) = self.ahead.try_take(Instant::now().into_std()) {
            has_waited = true;
            tokio::time::sleep(wait).await;
        }
        has_waited
    }
}

impl<I: Issuer> Sessions<I> {
    /// Waits until STS may be called for a session. Returns `false` if the session is forgotten before.
    pub(super) async fn turn(
        &self,
        key: &SessionKey,
        slot: &Slot,
        changes: &mut watch::Receiver<State>,
    ) -> bool {
        let mut outcome = TurnOutcome::Prompt;
        loop {
            // Marking comes before the attempt, so that no change after it is missed.
            changes.mark_unchanged();
            match self.try_turn(slot) {
                Attempt::Forgotten => {
                    self.0.pacing.turns.ended(TurnOutcome::GivenUp);
                    return false;
                }
                Attempt::NotNeeded => return true,
                Attempt::Taken => {
                    // If a request waits, the pod runs, and the node's limit does not apply.
                    let has_waited = tokio::select! {
                        biased;
                        _ = changes.wait_for(|state| state.phase.is_hurried()) => false,
                        has_waited = self.0.pacing.turn_ahead() => has_waited,
                    };
                    if slot.borrow().phase.is_forgotten() {
                        self.0.pacing.turns.ended(TurnOutcome::GivenUp);
                        return false;
                    }
                    if has_waited {
                        outcome = TurnOutcome::Slowed;
                    }
                    self.0.pacing.turns.ended(outcome);
                    return true;
                }
                Attempt::Wait(wait) => {
                    if outcome == TurnOutcome::Prompt {
                        self.0.log.paced(key, wait);
                    }
                    outcome = TurnOutcome::Slowed;
                    // Meanwhile, another pod may ask for the session, or the session may be forgotten.
                    let _ = tokio::time::timeout(wait, changes.changed()).await;
                }
            }
        }
    }

    fn try_turn(&self, slot: &Slot) -> Attempt {
        let mut attempt = Attempt::NotNeeded;
        slot.send_if_modified(|state| {
            attempt = match &mut state.turn {
                _ if state.phase.is_forgotten() => Attempt::Forgotten,
                Turn::Taken => Attempt::NotNeeded,
                Turn::Awaited { pods, until } => match self.0.pacing.take(pods) {
                    Ok(()) => Attempt::Taken,
                    Err(wait) => {
                        *until = Some(Instant::now() + wait);
                        Attempt::Wait(wait)
                    }
                },
            };
            if matches!(attempt, Attempt::Taken) {
                state.turn = Turn::Taken;
            }
            false
        });
        attempt
    }
}

/// The result of trying to take a turn.
enum Attempt {
    Taken,
    NotNeeded,
    Wait(Duration),
    Forgotten,
}
