//! The eBPF programs of the agent. They read the context, call the decisions in `metaproxy-common`, and act on them.
//!
//! On the host this is an empty stub, so that `cargo check --workspace` needs no eBPF toolchain. `cargo xtask
//! build-ebpf` builds the programs.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod caller;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod listener;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod peername;
#[cfg(target_arch = "bpf")]
mod programs;
#[cfg(target_arch = "bpf")]
mod sockaddr;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod sockops;

#[cfg(not(target_arch = "bpf"))]
fn main() {}
