//! Programs for the inside of the lab's pods, which the binary of this crate runs: clients, attackers, and a proxy.

pub mod attack;
pub mod craft;
pub mod dial;
pub mod redirect;
