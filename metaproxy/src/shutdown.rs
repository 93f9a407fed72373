//! The signals that shut a process down gracefully.

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// The error if the signal handlers cannot be installed.
#[derive(Debug, Error)]
#[error("cannot install the handlers of SIGTERM and SIGINT: {0}")]
pub struct SignalError(#[from] std::io::Error);

/// Installs handlers for SIGTERM and SIGINT. The returned future completes at the first of these signals.
///
/// # Errors
/// If the kernel does not accept the handlers.
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
