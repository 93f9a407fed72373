//! Sessions: the credentials of a role, from memory or by one STS call however many wait.

mod cache;
pub mod http;
mod session;
pub mod sts;

pub use cache::{Issuer, Sessions};
pub use session::{ObtainError, Principal, Session, SessionKey, timestamp};
