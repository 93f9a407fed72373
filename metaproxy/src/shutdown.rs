//! The signals that end a process in good order.

use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};

/// The signal handlers cannot be installed.
#[derive(Debug, Error)]
#[error("cannot install the handlers of SIGTERM and SIGINT: {0}")]
pub struct SignalError(#[from] std::io::Error);

/// Catches SIGTERM and SIGINT from now on. The returned future completes at the first of them.
///
/// # Errors
/// If the kernel refuses the handlers.
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
