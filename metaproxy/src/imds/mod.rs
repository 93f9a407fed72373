//! Serves the instance metadata protocol (IMDS), versions 1 and 2, to pods.
//!
//! [`server`] takes identified connections, and [`connection`] reads their requests. [`handler`] decides the
//! [`outcome::Outcome`] of each request, and [`response`] turns it into bytes. [`token`] issues session tokens,
//! [`path`] classifies paths, and [`passthrough`] fetches metadata of the node with [`upstream`].
//!
//! The protocol is that of the EC2 user guide, "Use the Instance Metadata Service", and includes the behavior that
//! SDKs expect.

pub mod connection;
mod decisions;
pub mod handler;
mod headers;
mod io_timeouts;
mod log_fields;
pub mod outcome;
pub mod passthrough;
pub mod path;
mod refusal_reporter;
pub mod response;
pub mod server;
pub mod token;
pub mod upstream;

pub use connection::{Connections, Phase};
pub use handler::{Handler, ImdsV1Policy, Parts};
pub use passthrough::Passthrough;
pub use refusal_reporter::RefusalReporter;
