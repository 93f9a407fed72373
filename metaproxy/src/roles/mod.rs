//! Which role a pod has, and why: a pure function of the pod, its namespace and the configuration.

pub mod arn;
mod decision;
pub mod policy;
mod reason;
pub mod session_name;

pub use arn::{BaseArn, RoleArn};
pub use decision::{AnnotationKeys, Decision, Grant, Rules, Subject};
pub use reason::{Reason, RoleSource};
