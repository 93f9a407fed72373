//! metaproxy: gives each pod its own IAM role on Kubernetes nodes in EC2, with no iptables.
//!
//! Data flows one way, and the modules show it: a pod's connection is [`intercept`]ed, its caller identified ([`identify`]),
//! what is known of the pod comes from [`pods`], its role is decided in [`roles`], the session obtained in
//! [`credentials`], and the answer served by [`imds`]. [`agent`] wires them together; [`guard`] is a process of its own
//! that keeps pods out while no agent runs.

pub mod admin;
pub mod agent;
pub mod apiserver;
#[cfg(test)]
mod captured_log;
pub mod cgroups;
pub mod cli;
pub mod commands;
pub mod credentials;
pub mod doctor;
pub mod error_chain;
pub mod explain;
pub mod guard;
pub mod identify;
pub mod imds;
mod input;
pub mod intercept;
pub mod introspection;
pub mod memory;
pub mod migrate;
pub mod node_ports;
pub mod pods;
mod rate_limiter;
pub mod roles;
pub mod runtime_dir;
pub mod shutdown;
pub mod telemetry;
pub mod terminal;
