//! How often one pod may have a new session. What shapes a session stands in annotations, which a tenant can change
//! hundreds of times a second: without a pace each change is an STS call and an audit line.
//!
//! New is a session that STS was not asked for yet. Renewals and retries are not paced here: they have intervals of their
//! own. The turn is taken when STS is about to be asked, so what is forgotten while it waits takes none.
//!
//! Pods themselves can be made hundreds of times a second. So what is fetched before anybody asks for it has a pace of the
//! node's own too.

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

/// New sessions that a pod may have at once. A pod has one in its life, and one more for each change of its role, external
/// id, session name or service account: several within seconds are a deployment tool that annotates step by step.
pub const MAX_SESSIONS_AT_ONCE: u32 = 5;

/// From one new session of a pod to the next when those are used up. Even 250 pods of one node that all change all the time
/// ask STS 125 times a second, of the 600 that an account has in a region (AWS STS quotas); and the annotation that is left
/// in the end is served within this time.
pub const NEW_SESSION_INTERVAL: Duration = Duration::from_secs(2);

/// New sessions of the node that no request waits for, at once: an agent that starts fetches one for each pod of its node.
pub(super) const MAX_AHEAD_AT_ONCE: u32 = 250;

/// From one to the next when those are used up. A kubelet starts fewer pods than ten in a second. But a user who may create
/// pods can bind any number to a node (`spec.nodeName`), which the kubelet then refuses; such a pod has no process, so no
/// request ever waits for its session.
const AHEAD_INTERVAL: Duration = Duration::from_millis(100);

/// Whether STS may be asked for a session.
#[derive(Debug)]
pub(super) enum Turn {
    /// Not before one of these pods, which ask for it, has a turn.
    Awaited {
        /// The pods, each once.
        pods: Vec<PodUid>,
        /// When the first of them has one, as far as that is known.
        until: Option<Instant>,
    },
    /// It was asked before, or may be asked now.
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
    /// Adds a pod that asks; `true` if its turn may be the one that counts.
    pub fn ask(&mut self, pod: &PodUid) -> bool {
        match self {
            Self::Awaited { pods, .. } if !pods.contains(pod) => {
                pods.push(pod.clone());
                true
            }
            _ => false,
        }
    }

    /// When STS may be asked; `None` if that is not waited for.
    pub fn until(&self) -> Option<Instant> {
        match self {
            Self::Awaited { until, .. } => *until,
            Self::Taken => None,
        }
    }
}

/// The pace of each pod that had a new session lately, and that of the node for sessions that no request waits for.
#[derive(Debug)]
pub(super) struct Pacing {
    pods: Mutex<HashMap<PodUid, RateLimiter>>,
    ahead: RateLimiter,
    /// Held by the one that waits for the node's next turn; the others wait in order.
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
    /// Takes a turn of one of these pods, the first that has one.
    ///
    /// # Errors
    /// How long it is until one of them has a turn.
    fn take(&self, pods: &[PodUid]) -> Result<(), Duration> {
        let now = Instant::now().into_std();
        let mut limiters = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shortest = NEW_SESSION_INTERVAL;
        for pod in pods {
            if !limiters.contains_key(pod) {
                // Those that are as good as new make room, so no more are kept than had a session in the last ten seconds.
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

    /// Waits for a turn of the node. Whether it had to.
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
    /// Waits until STS may be asked for a session. `false` if the session is forgotten before.
    pub(super) async fn turn(
        &self,
        key: &SessionKey,
        slot: &Slot,
        changes: &mut watch::Receiver<State>,
    ) -> bool {
        let mut outcome = TurnOutcome::Prompt;
        loop {
            // Before the look, so that no change after it is missed.
            changes.mark_unchanged();
            match self.try_turn(slot) {
                Attempt::Forgotten => {
                    self.0.pacing.turns.ended(TurnOutcome::GivenUp);
                    return false;
                }
                Attempt::NotNeeded => return true,
                Attempt::Taken => {
                    // A request that waits has no part in this: only a running pod makes one.
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
                    // Another pod may ask for the session meanwhile, or it may be forgotten.
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

/// What came of trying to take a turn.
enum Attempt {
    Taken,
    NotNeeded,
    Wait(Duration),
    Forgotten,
}
