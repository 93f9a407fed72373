//! Redirects pods' connections to the metadata service, in the kernel.
//!
//! [`programs`] loads and attaches the programs, [`attachment`] keeps them attached to the pods' cgroup, and [`pod_maps`] says
//! in the kernel's maps what is special about single pods. [`listener`] opens the listeners that connections are sent to, on
//! a port that [`free_port`] finds, and [`port_claim`] tells whether a pod or Service claims that port. [`placement`] tells whether
//! pods are where their connections are intercepted. [`guard`] keeps pods from the metadata service while nothing redirects
//! them.

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
