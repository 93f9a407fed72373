//! Provides sessions: the credentials of a role, from memory or from one STS call for all requests that wait.

mod audited;
mod cache;
mod intermediate_role;
pub mod network_env;
mod session;
pub mod sts;
pub mod token_subjects;
mod web_identity;

pub(crate) use audited::AuditedIssuer;
pub use cache::session_view::{SessionCounts, SessionView};
pub use cache::{Issuer, SessionHandle, Sessions};
pub use cache::{MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
pub use session::{
    IssuedCredentials, ObtainError, Session, SessionError, SessionKey, paced_reason, timestamp,
};
pub use web_identity::StsIssuer;
