//! Sessions: the credentials of a role, from memory or by one STS call however many wait.

mod cache;
pub mod http;
mod session;
pub mod sts;
mod through;

pub use cache::{Issuer, Sessions};
pub use session::{Issued, ObtainError, Session, SessionKey, timestamp};
