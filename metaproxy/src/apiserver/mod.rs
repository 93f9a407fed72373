//! The Kubernetes API server: the client, and all that the agent does with it except watching pods.

mod connection;
pub mod events;
pub mod permissions;
mod request;
pub mod taint;
pub mod token_trial;

pub use connection::{ApiServer, ConnectError, KubeconfigSource};
pub use request::{REQUEST_TIMEOUT, error_text, with_timeout};
