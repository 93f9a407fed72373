//! The lab: a node with its pods, each in a cgroup and a network namespace of its own, an instance metadata service
//! and an STS to talk to, and the agent as a process. Shared by the demo and by the tests.

pub mod attack;
pub mod craft;
pub mod dial;
pub mod lab;
pub mod redirect;
