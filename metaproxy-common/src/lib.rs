//! The code that the agent and its eBPF programs share: the layout of the maps, their names, the pure decision about
//! a `connect()`, and the option that carries the caller. It is compiled for the kernel and for the host, so that
//! tests on the host cover what runs in the kernel.
#![no_std]

pub mod address;
pub mod handshake;
pub mod layout;
pub mod names;
pub mod packet;
pub mod rate;
pub mod siphash;
pub mod target;
pub mod verdict;

/// The version of the contract between processes that run side by side on one node: the intercepted addresses with
/// their sentinels, and the way in which a caller is identified. A change of either increments it. The form of
/// session tokens is not part of it, because a client whose token is refused asks for another.
///
/// In version 1, callers were looked up by their 4-tuple. In version 2, they travel in the handshake.
pub const CONTRACT: u32 = 2;
