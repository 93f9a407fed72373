//! Checks whether the worker threads of the runtime that serves pods still run tasks.
//!
//! The admin server has its own thread, so it answers even while all workers hang. Its answers about health must
//! still depend on the workers, because the kubelet restarts an agent only if its liveness probe fails.

use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

/// How long the workers may take to run a task before the agent counts as dead. It is less than the timeout of
/// `metaproxy probe live`, so that the probe receives the answer.
const LIVE_TIMEOUT: Duration = Duration::from_millis(7500);

/// How long the workers may take to run a task before the agent counts as not ready. It is less than the timeout of
/// `metaproxy probe ready`.
const READY_TIMEOUT: Duration = Duration::from_millis(1250);

/// The worker threads of the runtime that serves pods.
#[derive(Clone, Debug)]
pub(super) struct Workers {
    runtime: Handle,
    pub live_timeout: Duration,
    pub ready_timeout: Duration,
}

impl Workers {
    /// Makes the handle to a runtime's workers.
    pub fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            live_timeout: LIVE_TIMEOUT,
            ready_timeout: READY_TIMEOUT,
        }
    }

    /// Checks that a worker runs a task in time.
    ///
    /// # Errors
    /// Returns a sentence for the response if no worker has run the task.
    pub async fn check(&self, timeout: Duration) -> Result<(), String> {
        match tokio::time::timeout(timeout, self.run(async {})).await {
            Ok(Some(())) => Ok(()),
            Ok(None) => Err("the worker threads are stopping\n".to_owned()),
            Err(_) => Err(format!(
                "the worker threads have run no task within {} ms: they hang, or the node is overloaded\n",
                timeout.as_millis()
            )),
        }
    }

    /// Runs a task on the workers, and returns its output, or `None` if it has panicked or the workers are stopping.
    /// The task is aborted if the future is dropped.
    pub async fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<T> {
        AbortOnDropHandle::new(self.runtime.spawn(task)).await.ok()
    }
}
