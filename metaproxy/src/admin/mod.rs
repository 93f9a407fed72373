//! For operators and machines: `/healthz`, `/readyz`, `/metrics`, on a port and on a socket of each instance's own.

pub mod asking;
mod metrics;
mod page;
pub mod probe;
mod server;
mod socket;

pub use metrics::Sources;
pub use server::{Admin, Desk, Explaining};
pub use socket::{AdminSocket, SocketError};
