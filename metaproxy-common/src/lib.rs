//! What the agent and its eBPF programs share: the layout of the maps, their names, and the pure decision
//! about a `connect()`. Compiled for the kernel and for the host alike, so the decision is tested on the host.
#![no_std]

pub mod address;
pub mod layout;
pub mod names;
pub mod verdict;
