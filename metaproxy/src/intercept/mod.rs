//! Intercepts connections of pods to the metadata service, and identifies the pod at the other end of an accepted one.
//!
//! [`listener`] opens the listeners. [`programs`] loads the eBPF programs that redirect to them, [`attachment`] keeps
//! these attached, and [`pod_maps`] tells them which pods need other treatment. [`caller`] identifies the pod of an
//! accepted connection. [`placement`] checks that pods are in the cgroup where they are intercepted, and [`port_claim`]
//! and [`self_check`] check that connections reach the listeners. [`guard`] keeps pods from the metadata service while
//! no agent redirects them.

pub mod attachment;
pub mod bpf_conflicts;
pub mod caller;
pub mod free_port;
pub mod guard;
pub mod keep;
pub mod kernel;
pub mod link;
pub mod listener;
pub mod object;
pub mod own_links;
pub mod placement;
pub mod pod_maps;
pub mod port_claim;
pub mod programs;
pub mod refusals;
pub mod self_check;
pub mod tcp_sockets;
