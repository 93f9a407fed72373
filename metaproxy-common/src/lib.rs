//! What the agent and its eBPF programs share: the layout of the maps, their names, and the pure decision
//! about a `connect()`. Compiled for the kernel and for the host alike, so the decision is tested on the host.
#![no_std]

pub mod address;
pub mod layout;
pub mod names;
pub mod packet;
pub mod target;
pub mod verdict;

/// What processes of one node must agree on to stand beside each other: the intercepted addresses and their sentinels,
/// and the form of session tokens. Whoever changes any of it counts this up.
pub const CONTRACT: u32 = 1;
