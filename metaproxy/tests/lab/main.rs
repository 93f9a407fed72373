//! Tests in the lab: real programs on real cgroups, network namespaces and clients. `cargo xtask test MODULE` runs
//! one module. All modules are one test binary, because linking one for each module took longer than many of the
//! tests.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it fails"
)]

mod common;

mod apiserver;
mod attacks;
mod capabilities;
mod clients;
mod coexistence;
mod commands;
mod connections;
mod crashes;
mod discovery;
mod doctor;
mod escapes;
mod explained;
mod families;
mod faults;
mod floods;
mod guard;
mod hostile;
mod identity;
mod impostors;
mod interception;
mod interceptors;
mod kernels;
mod leftovers;
mod lifecycle;
mod logs;
mod modes;
mod monitoring;
mod nat;
mod node_ports;
mod outages;
mod outsiders;
mod own_roles;
mod pacing;
mod passthrough;
mod paths;
mod protocol;
mod reported;
mod sessions;
mod shortages;
mod sts;
mod takeover;
