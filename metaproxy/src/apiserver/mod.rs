//! The Kubernetes API server: the way there, and what the agent does beside watching.

mod connection;
pub mod events;
pub mod permissions;
pub mod taint;
pub mod token_trial;

pub use connection::{ApiServer, ConnectError, KubeconfigSource, REQUEST_TIMEOUT, error_text, with_timeout};
