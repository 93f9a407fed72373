//! The agent's internal tasks, each with a name that appears in the error if the task ends.

use std::collections::HashMap;

use tokio::sync::oneshot;
use tokio::task::{AbortHandle, Id, JoinHandle, JoinSet};

use super::StartError;

/// Tasks that run as long as the agent does. None of them ends by itself, so an end is a failure. Dropping this value
/// aborts the tasks.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    set: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> AbortHandle {
        let handle = self.set.spawn(task);
        self.names.insert(handle.id(), name);
        handle
    }

    /// Waits until a task ends, and returns the error that names it. Waits forever if there are no tasks.
    pub async fn failed(&mut self) -> StartError {
        let id = match self.set.join_next_with_id().await {
            Some(Ok((id, ()))) => id,
            Some(Err(error)) => error.id(),
            None => std::future::pending().await,
        };
        StartError::TaskEnded(self.names.get(&id).copied().unwrap_or("unknown"))
    }
}

/// A task that owns a part of the agent, and returns the part when it is stopped.
#[derive(Debug)]
pub(super) struct Supervised<T> {
    name: &'static str,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<T, StartError>>,
}

impl<T: Send + 'static> Supervised<T> {
    /// Starts the task. It must return the part soon after the receiver fires.
    pub fn spawn<F>(name: &'static str, run: impl FnOnce(oneshot::Receiver<()>) -> F) -> Self
    where
        F: Future<Output = Result<T, StartError>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(stopped));
        Self { name, stop, task }
    }

    /// Waits until the task ends without having been stopped. Must not be called again after it has returned.
    pub async fn failed(&mut self) -> StartError {
        match (&mut self.task).await {
            Ok(Err(error)) => error,
            Ok(Ok(_)) | Err(_) => StartError::TaskEnded(self.name),
        }
    }

    /// Stops the task.
    ///
    /// # Errors
    /// Returns the task's own error, or [`StartError::TaskEnded`] if it has panicked.
    pub async fn stop(self) -> Result<T, StartError> {
        // The send fails if the task has already ended.
        let _ = self.stop.send(());
        self.task.await.unwrap_or(Err(StartError::TaskEnded(self.name)))
    }
}

/// Waits like [`Supervised::failed`], or forever if there is no such task.
pub(super) async fn failed<T: Send + 'static>(task: Option<&mut Supervised<T>>) -> StartError {
    match task {
        Some(task) => task.failed().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_reported_by_its_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("endless", std::future::pending());
        tasks.spawn("attachment", std::future::ready(()));
        assert_eq!(
            tasks.failed().await.to_string(),
            "internal task `attachment` exited; stopping so the supervisor restarts the agent"
        );
    }

    #[tokio::test]
    async fn an_aborted_task_is_reported_by_its_name_too() {
        let mut tasks = Tasks::default();
        tasks.spawn("pods", std::future::pending()).abort();
        assert!(matches!(tasks.failed().await, StartError::TaskEnded("pods")));
    }

    #[tokio::test]
    async fn a_supervised_task_returns_its_part_when_it_is_stopped() {
        let task = Supervised::spawn("part", |stopped| async move {
            let _ = stopped.await;
            Ok(7)
        });
        assert_eq!(task.stop().await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_supervised_task_that_ends_without_a_stop_is_reported_by_its_name() {
        let mut task = Supervised::spawn("part", |_stopped| std::future::ready(Ok(7)));
        assert!(matches!(task.failed().await, StartError::TaskEnded("part")));
    }
}
