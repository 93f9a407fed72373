//! Finds pods that claim the listener's port with `hostPort`. A CNI plugin or a kubelet writes NAT rules for such a
//! port.

use std::fmt;
use std::net::SocketAddr;

use crate::pods::Inventory;

/// A pod that claims the listener's port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortClaim {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// The port.
    pub port: u16,
    /// Whether the pod shares the node's network namespace. If it does, no NAT rule is written for it, and it cannot
    /// listen on the port while the listener does.
    pub host_network: bool,
}

impl fmt::Display for PortClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            name,
            port,
            ..
        } = self;
        write!(
            f,
            "pod {namespace}/{name} declares hostPort {port}, which is the listener's port"
        )
    }
}

/// Finds the pod that claims the address and port of one of the listeners. If several do, pods with NAT rules come
/// before those without, and then the first by name is returned.
pub fn claim(inventory: &Inventory, listeners: &[SocketAddr]) -> Option<PortClaim> {
    inventory
        .host_ports()
        .filter(|(_, port)| listeners.iter().any(|listener| port.covers(*listener)))
        .map(|(pod, port)| PortClaim {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            port: port.port,
            host_network: pod.host_network,
        })
        .min_by_key(|claim| (claim.host_network, claim.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pod;
    use rstest::rstest;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(name: &str, port: &Value, spec: &Value, phase: &str) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "apps", "uid": format!("{name}-uid") },
            "spec": { "containers": [{ "name": "c", "ports": [port] }] },
            "status": { "phase": phase },
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        Arc::new(Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap())
    }

    fn claims(port: &Value) -> bool {
        let inventory = Inventory::new([pod("web", port, &json!({}), "Running")], [], []);
        let listeners = ["10.0.0.1:18181", "[fd00::1]:18181"].map(|address| address.parse().unwrap());
        claim(&inventory, &listeners).is_some()
    }

    #[rstest]
    #[case::of_every_address(json!({ "hostPort": 18181 }), true)]
    #[case::tcp(json!({ "hostPort": 18181, "protocol": "TCP" }), true)]
    #[case::another_port(json!({ "hostPort": 18182 }), false)]
    #[case::only_the_containers(json!({ "containerPort": 18181 }), false)]
    #[case::udp(json!({ "hostPort": 18181, "protocol": "UDP" }), false)]
    #[case::sctp(json!({ "hostPort": 18181, "protocol": "SCTP" }), false)]
    #[case::the_listeners_address(json!({ "hostPort": 18181, "hostIP": "10.0.0.1" }), true)]
    #[case::the_listeners_ipv6_address(json!({ "hostPort": 18181, "hostIP": "fd00:0::1" }), true)]
    #[case::every_ipv4_address(json!({ "hostPort": 18181, "hostIP": "0.0.0.0" }), true)]
    #[case::every_ipv6_address(json!({ "hostPort": 18181, "hostIP": "::" }), true)]
    #[case::another_address(json!({ "hostPort": 18181, "hostIP": "10.0.0.2" }), false)]
    #[case::loopback(json!({ "hostPort": 18181, "hostIP": "127.0.0.1" }), false)]
    #[case::no_address(json!({ "hostPort": 18181, "hostIP": "" }), true)]
    fn a_host_port_claims_the_listener_by_port_protocol_and_address(
        #[case] port: Value,
        #[case] is_one: bool,
    ) {
        assert_eq!(claims(&port), is_one);
    }

    #[test]
    fn every_ipv4_address_is_none_of_ipv6() {
        let inventory = Inventory::new(
            [pod(
                "web",
                &json!({ "hostPort": 18181, "hostIP": "0.0.0.0" }),
                &json!({}),
                "Running",
            )],
            [],
            [],
        );
        assert_eq!(claim(&inventory, &["[fd00::1]:18181".parse().unwrap()]), None);
    }

    #[test]
    fn a_finished_pod_claims_nothing_and_one_with_nat_rules_is_named_before_one_without() {
        let port = json!({ "hostPort": 18181 });
        let inventory = Inventory::new(
            [
                pod("a-job", &port, &json!({}), "Succeeded"),
                pod("b-host", &port, &json!({ "hostNetwork": true }), "Running"),
                pod("d-web", &port, &json!({}), "Pending"),
                pod("c-web", &port, &json!({}), "Running"),
            ],
            [],
            [],
        );
        let found = claim(&inventory, &["10.0.0.1:18181".parse().unwrap()]).unwrap();
        assert_eq!(
            found.to_string(),
            "pod apps/c-web declares hostPort 18181, which is the listener's port"
        );
        assert!(!found.host_network);
    }
}
