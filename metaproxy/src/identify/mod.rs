//! Identifies the client of each accepted connection. This stage is between the kernel's programs and the metadata
//! protocol.
//!
//! [`Acceptor`] takes a connection from a listener and applies the limit of its address. Then it reads the client by
//! [`Identifier`], applies the limit of the client's pod, and hands on an [`Identified`] connection. A connection
//! whose client cannot be identified is closed without an answer and counted in [`refusals`]. [`self_check`] checks
//! whether connections reach the listeners at all.

mod acceptor;
mod identifier;
mod limits;
pub mod refusals;
pub mod self_check;

pub use acceptor::{Acceptor, Counts, Identified};
pub use identifier::{Identifier, Unidentified};
pub use limits::{Admission, ClientLimits, Limits, Permit};

use crate::pods::PodUid;

/// The sender of the requests of a connection. It is identified once per connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The pod.
    pub uid: PodUid,
}
