//! For operators and machines: `/healthz`, `/readyz`, `/metrics`, on a port and on a socket of each instance's own.

pub mod client;
mod host;
mod metrics;
pub mod probe;
mod routes;
mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub use metrics::MetricSource;
pub use server::{Admin, serve_guard};
pub use socket::{AdminSocket, Owner, SocketError};
