//! Runs the task that keeps one session. It calls STS, waits until the renewal or the next attempt is due, and ends
//! when no call is planned any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::state::{Event, Next, Report};
use super::{Issuer, Sessions, Slot};
use crate::credentials::{ObtainError, Session, SessionKey};
use crate::telemetry::metrics::{StsOutcome, TurnOutcome};

impl<I: Issuer> Sessions<I> {
    /// Calls STS for a session in the phase `Calling`. Then renews it until it is let go or forgotten, or a request
    /// has started another call.
    pub(super) async fn keep(self, key: SessionKey, mut slot: Arc<Slot>) {
        let mut next = Next::Call;
        loop {
            next = match next {
                Next::Nothing => return,
                Next::Call => self.call(&key, &slot).await,
                Next::Timer { after, calls } => {
                    let Some(held) = after_pause(after, slot).await else {
                        return;
                    };
                    slot = held;
                    let next = self.apply(&slot, Event::TimerFired { calls }).next;
                    if matches!(next, Next::Timer { .. }) {
                        debug!(role = %key.role, session = %key.shape.name, "no request asked for the session; it is let go");
                    }
                    next
                }
            };
        }
    }

    /// Makes one call when its turn comes, and returns the next action.
    async fn call(&self, key: &SessionKey, slot: &Slot) -> Next {
        let mut unfinished = Unfinished(Some((self, slot)));
        let mut changes = slot.subscribe();
        if !self.turn(key, slot, &mut changes).await {
            return Next::Nothing;
        }
        let permit = tokio::select! {
            biased;
            permit = self.0.background_calls.acquire() => permit.ok(),
            _ = changes.wait_for(|state| state.phase.is_hurried()) => None,
        };
        if slot.borrow().phase.is_forgotten() {
            self.0.pacing.turns.ended(TurnOutcome::GivenUp);
            return Next::Nothing;
        }
        let began = Instant::now();
        // The future is boxed only while the call runs. So the tasks that wait for the next renewal, one for each
        // session, stay small.
        let result = Box::pin(self.0.issuer.issue(key)).await;
        drop(permit);
        self.0.calls.ended(outcome(&result), began.elapsed());
        unfinished.0 = None;
        let event = Event::CallEnded {
            result,
            began,
            jitter: fastrand::f64(),
        };
        let actions = self.apply(slot, event);
        if let Some(report) = &actions.report {
            self.log(key, report, began);
        }
        actions.next
    }

    fn log(&self, key: &SessionKey, report: &Report, began: Instant) {
        let log = &self.0.log;
        match report {
            Report::Obtained {
                session,
                before,
                was_awaited,
            } => {
                log.obtained(key, session, before.as_ref());
                if *was_awaited {
                    log.waited(key, began);
                }
            }
            Report::Failed { failure, before } => log.failed(key, before.as_ref(), failure),
        }
    }
}

/// A call that has no result yet. When dropped, it reports that the call ended without a result: the session was
/// forgotten before its turn came, or the task of the call has ended. The next request then starts another call.
struct Unfinished<'a, I: Issuer>(Option<(&'a Sessions<I>, &'a Slot)>);

impl<I: Issuer> Drop for Unfinished<'_, I> {
    fn drop(&mut self) {
        if let Some((sessions, slot)) = self.0 {
            let _ = sessions.apply(slot, Event::CallDropped);
        }
    }
}

fn outcome(result: &Result<Session, ObtainError>) -> StsOutcome {
    match result {
        Ok(_) => StsOutcome::Issued,
        Err(ObtainError::Denied(_)) => StsOutcome::Denied,
        Err(ObtainError::NoToken(_)) => StsOutcome::NoToken,
        Err(ObtainError::Unavailable(_)) => StsOutcome::Unavailable,
    }
}

/// Returns the slot after a pause, unless it was forgotten meanwhile.
async fn after_pause(pause: Duration, slot: Arc<Slot>) -> Option<Arc<Slot>> {
    let weak = Arc::downgrade(&slot);
    drop(slot);
    tokio::time::sleep(pause).await;
    weak.upgrade()
}
