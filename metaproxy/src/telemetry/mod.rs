//! The signals that operators observe: health, metrics, the audit log, and events. It also limits the log.

pub mod audit;
pub mod health;
pub(crate) mod log_limiter;
pub mod metrics;
pub mod pod_event;
