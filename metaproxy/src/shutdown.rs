//! What ends a process of ours in good order.

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// Signals can't be handled.
#[derive(Debug, Error)]
#[error("cannot handle signals: {0}")]
pub struct SignalError(#[from] std::io::Error);

/// SIGTERM or SIGINT, caught from now on.
///
/// # Errors
/// Where the system refuses.
pub fn stop_signal() -> Result<impl Future<Output = ()>, SignalError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
