//! An agent takes no port of the node that other software wants.

use std::net::{Ipv6Addr, TcpListener};

use crate::common::{Node, counts, dial, node};
use metaproxy::node_ports::{WELL_KNOWN, wanted_by};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;

/// Starts a server on each well-known port of a node. The servers listen at all addresses of both families, as
/// daemons written in Go do.
fn servers(node: &Node) -> Vec<TcpListener> {
    let listen = |port: u16| {
        TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
            .unwrap_or_else(|error| panic!("[::]:{port}: {error}"))
    };
    node.lab
        .node()
        .run(move || WELL_KNOWN.iter().map(|(port, ..)| listen(*port)).collect())
        .unwrap()
}

fn assert_takes_none(agent: &Agent) {
    for listener in agent.listeners().unwrap() {
        assert_eq!(wanted_by(listener.port()), None, "{listener}");
    }
}

#[test]
fn every_well_known_server_of_a_node_starts_beside_an_agent_and_a_guard() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let _guard = node.closed_guard();
    let servers = servers(&node);
    assert_eq!(servers.len(), WELL_KNOWN.len());
    assert_takes_none(&agent);
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}

#[test]
fn an_agent_starts_beside_every_well_known_server_of_a_node() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _servers = servers(&node);
    let agent = node.agent();
    assert_takes_none(&agent);
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}
