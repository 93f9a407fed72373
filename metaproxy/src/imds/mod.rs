//! The instance metadata protocol towards a pod, versions 1 and 2.
//!
//! Source for the protocol: the EC2 user guide, "Use the Instance Metadata Service", and what SDKs expect of it.

mod answer;
mod decisions;
mod http;
mod io_timeouts;
mod limits;
mod log_fields;
mod passthrough;
pub mod path;
mod recent;
pub mod server;
mod service;
pub mod token;
pub mod upstream;

pub use answer::in_words;
pub use http::{Http, Phase};
pub use limits::{ClientLimits, Limits, Permit};
pub use passthrough::Passthrough;
pub use service::{Client, ImdsV1Policy, Parts, Service};
