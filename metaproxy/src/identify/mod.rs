//! Tells whose each accepted connection is: the stage between the kernel's programs and the metadata protocol.
//!
//! [`Acceptor`] takes a connection from a listener, holds its address to a limit, reads its client by [`Identifier`], holds
//! the client's pod to its limit, and hands on an [`Identified`] connection. What can't be identified is closed without an
//! answer and counted in [`refusals`]. [`self_check`] tells whether connections reach the listeners at all.

mod acceptor;
mod identifier;
mod limits;
pub mod refusals;
pub mod self_check;

pub use acceptor::{Acceptor, Counts, Identified};
pub use identifier::{Identifier, Unidentified};
pub use limits::{ClientLimits, Limits, Permit};

use crate::pods::PodUid;

/// Who sends the requests of a connection; identified once per connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The pod.
    pub uid: PodUid,
}
