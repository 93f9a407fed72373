//! The instance metadata protocol towards a pod, versions 1 and 2.
//!
//! [`server`] takes identified connections, [`connection`] reads their requests, [`handler`] decides what each comes to, an
//! [`outcome::Outcome`], and [`response`] makes bytes of it. [`token`] issues session tokens, [`path`] classifies paths, and
//! [`passthrough`] fetches metadata of the node by [`upstream`].
//!
//! Source for the protocol: the EC2 user guide, "Use the Instance Metadata Service", and what SDKs expect of it.

pub mod connection;
mod decisions;
pub mod handler;
mod headers;
mod io_timeouts;
mod log_fields;
pub mod outcome;
pub mod passthrough;
pub mod path;
mod recent;
pub mod response;
pub mod server;
pub mod token;
pub mod upstream;

pub use connection::{Connections, Phase};
pub use handler::{Handler, ImdsV1Policy, Parts};
pub use passthrough::Passthrough;
