//! A pod's connection, from the kernel to an accepted socket whose caller is known.
//!
//! [`cgroups`] finds the pods' cgroup and reads pod UIDs out of paths, [`listener`] opens the listeners,
//! [`programs`] loads and attaches what redirects to them, [`attachment`] keeps it attached, [`pod_maps`] says in the kernel's
//! maps what is special about single pods, and [`caller`] tells who stands at the other end of an accepted connection.
//! [`placement`] tells whether pods are where they are intercepted. [`port_claim`] and [`self_check`] tell whether connections reach the
//! listeners. [`guard`] is what keeps pods from the metadata service where
//! nothing redirects them.

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
