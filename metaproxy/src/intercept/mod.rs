//! Redirects pods' connections to the metadata service, in the kernel.
//!
//! [`programs`] loads and attaches the programs. [`attachment`] keeps them attached to the pods' cgroup, and
//! [`pod_maps`] writes what is special about single pods to the kernel's maps. [`listener`] opens the listeners to
//! which connections are redirected, on a port that [`free_port`] finds. [`port_claim`] finds pods that claim that
//! port. [`placement`] checks that pods are below the cgroup where their connections are intercepted. [`guard`] keeps
//! pods from the metadata service while no agent redirects them.

pub mod attachment;
pub mod bpf_conflicts;
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
pub mod tcp_sockets;
