//! The steps by which a running agent stops. Each step is a type that is made from the previous one: [`Running`] →
//! [`Detached`] → [`Drained`].

use std::sync::Arc;

use metaproxy_common::layout::Counter;
use tokio::task::AbortHandle;
use tracing::{debug, info};

use super::StartError;
use super::context::Context;
use super::interception::Serving;
use super::tasks::{Supervised, Tasks, failed};
use crate::admin::{AdminSocket, AdminThread};
use crate::intercept::attachment::Attachment;
use crate::intercept::guard::SwitchedGuard;
use crate::introspection::MetricSource;
use crate::telemetry::health::{Condition, Part};

/// A running agent.
pub(super) struct Running {
    pub(super) attachment: Supervised<Attachment>,
    pub(super) serving: Option<Serving>,
    pub(super) readiness_log: AbortHandle,
    pub(super) rest: Rest,
}

/// The parts that remain until the last step.
pub(super) struct Rest {
    pub(super) context: Context,
    pub(super) metrics: Arc<dyn MetricSource>,
    pub(super) guard: Option<Supervised<SwitchedGuard>>,
    pub(super) tasks: Tasks,
    pub(super) admin: (AdminThread, AdminSocket),
}

/// An agent whose programs redirect no more connections. The programs that carry and verify callers are still
/// attached.
pub(super) struct Detached {
    attachment: Result<Attachment, StartError>,
    serving: Option<Serving>,
    rest: Rest,
}

/// An agent without open connections.
pub(super) struct Drained {
    attachment: Result<Attachment, StartError>,
    rest: Rest,
    was_serving: bool,
}

impl Running {
    /// Waits until a task ends. No task ends by itself, so an end means that a part of the agent is missing. The
    /// agent must then stop.
    pub async fn failed(&mut self) -> StartError {
        let listening = self.serving.as_mut().map(|serving| &mut serving.listening);
        tokio::select! {
            error = self.rest.tasks.failed() => error,
            error = self.attachment.failed() => error,
            error = failed(listening) => error,
            error = failed(self.rest.guard.as_mut()) => error,
        }
    }

    /// Ends the redirection.
    pub async fn detach(self) -> Detached {
        let Self {
            attachment,
            serving,
            readiness_log,
            rest,
        } = self;
        if serving.is_some() {
            // The stop was requested, so the log does not report that the agent is no longer ready.
            readiness_log.abort();
            let condition = Condition::Failing("the agent ends".to_owned());
            rest.context.health.set(Part::Interception, condition);
            info!("stopping: new connections are no longer redirected; open ones are served to their end");
        }
        let mut attachment = attachment.stop().await;
        if let Ok(attachment) = &mut attachment {
            attachment.stop_redirecting();
        }
        Detached {
            attachment,
            serving,
            rest,
        }
    }
}

impl Detached {
    /// Serves open connections to their end.
    ///
    /// # Errors
    /// Returns the error of the task that keeps the listeners.
    pub async fn drain(self) -> Result<Drained, StartError> {
        let was_serving = self.serving.is_some();
        if let Some(serving) = self.serving {
            serving.drain().await?;
        }
        Ok(Drained {
            attachment: self.attachment,
            rest: self.rest,
            was_serving,
        })
    }
}

impl Drained {
    /// Detaches the remaining programs, then opens the guard. Until this point, the guard has refused the connections
    /// that were no longer redirected.
    pub async fn close(self) {
        let Rest {
            context,
            metrics,
            guard,
            tasks,
            admin,
        } = self.rest;
        drop(self.attachment);
        if let Some(guard) = guard {
            drop(guard.stop().await);
        }
        drop((tasks, admin, context));
        if !self.was_serving {
            info!("stopped");
            return;
        }
        info!(connections_served = metrics.connections().served, "stopped");
        let kernel = Counter::ALL
            .iter()
            .map(|counter| format!("{}={}", counter.label(), metrics.kernel(*counter)));
        debug!("counted in the kernel: {}", kernel.collect::<Vec<_>>().join(" "));
    }
}
