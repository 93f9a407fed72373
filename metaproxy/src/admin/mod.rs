//! The admin server: health, metrics, status and explanations, on a socket of each instance's own and on a port.

pub mod client;
mod host;
mod metrics;
pub mod probe;
mod routes;
mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
mod workers;

pub use metrics::MetricSource;
pub use server::{Admin, AdminThread, serve_guard};
pub use socket::{AdminSocket, Owner, SocketError};
