//! What the agent and its eBPF programs share: the layout of the maps, their names, the pure decision about a
//! `connect()`, and the option that carries the caller. Compiled for the kernel and for the host alike, so that both
//! are tested on the host.
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

/// What processes of one node must agree on to stand beside each other: the intercepted addresses and their sentinels, and
/// how a caller is known. A change of any of it counts this up. The form of session tokens is not among it: a token that
/// another process can't read is refused, and the client asks for another.
///
/// 1: callers were filed under their 4-tuple. 2: callers travel in the handshake.
pub const CONTRACT: u32 = 2;
