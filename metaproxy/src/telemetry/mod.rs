//! What operators observe: health, metrics, the audit log, and limits of the log.

pub mod audit;
pub mod health;
pub(crate) mod log_limiter;
pub mod metrics;
pub mod pod_event;
