//! The admin server, which serves health, metrics, status and explanations. Each instance serves its own socket and,
//! if configured, a port.

pub mod client;
mod guard_report;
mod host;
mod metrics;
pub mod probe;
mod routes;
mod server;
mod socket;
#[cfg(test)]
pub(crate) mod testing;
mod workers;

pub use guard_report::GuardReport;
pub use server::{Admin, AdminThread, serve_guard};
pub use socket::{AdminSocket, Owner, SocketError};
