//! Helpers for pods with the same address, and for outcomes of refused connections.

use metaproxy_lab::pod::{Pod, PodSpec};

use super::{Node, Outcomes};

/// Asserts that all outcomes are among the allowed ones.
pub fn assert_only(outcomes: &Outcomes, allowed: &[&str], context: &str) {
    let others: Vec<_> = outcomes
        .iter()
        .filter(|(outcome, _)| !allowed.contains(&outcome.as_str()))
        .collect();
    assert!(others.is_empty(), "{context}: {others:?}, beside {outcomes:?}");
}

/// Makes two pods that have the same address.
pub fn twins(node: &Node) -> (Pod, Pod) {
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let spec = PodSpec {
        same_address_as: Some(victim.number()),
        ..PodSpec::with_role("twin", "role-twin")
    };
    let twin = node.lab.pod(spec).unwrap();
    (victim, twin)
}

/// The outcomes of a refused connection: closed without an answer, reset, or not established at all.
pub const REFUSED: [&str; 8] = [
    "error EINPROGRESS: Operation now in progress",
    "error ETIMEDOUT: Connection timed out",
    "no answer",
    "error ECONNRESET: Connection reset by peer",
    "error EPIPE: Broken pipe",
    "error ECONNREFUSED: Connection refused",
    "error EAGAIN: Try again",
    "error EADDRINUSE: Address already in use",
];

pub fn v4_listener(agent: &metaproxy_lab::agent::Agent) -> String {
    agent
        .listeners()
        .unwrap()
        .into_iter()
        .find(|address| address.is_ipv4())
        .unwrap()
        .to_string()
}
