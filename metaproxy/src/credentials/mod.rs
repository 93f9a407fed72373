//! Sessions: the credentials of a role, from memory or by one STS call however many wait.

mod cache;
pub mod http;
mod intermediate_role;
mod session;
pub mod sts;
mod web_identity;

pub use cache::session_view::{SessionCounts, SessionView};
pub use cache::{Issuer, RecentSession, SessionHandle, Sessions};
pub use cache::{MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
pub use session::{IssuedCredentials, ObtainError, Session, SessionError, SessionKey, paced, timestamp};
pub use web_identity::StsIssuer;
