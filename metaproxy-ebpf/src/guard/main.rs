//! The eBPF programs of the guard, which keep pods from the metadata service: connections while no agent redirects
//! them, and packets that connect hooks do not see.
//!
//! On the host this is an empty stub, like the agent's programs.
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
