//! The guard's programs: what keeps pods from the metadata service while nobody redirects them, and what connect hooks
//! can't see.
//!
//! On the host this is an empty stub, like the other object.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packets;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
#[path = "../sockaddr.rs"]
mod sockaddr;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
