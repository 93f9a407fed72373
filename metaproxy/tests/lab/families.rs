//! Pods and nodes with one address family or both. An additional listener must not take anything from the first one.

use crate::common::{IMDS, IMDS6, MAPPED, Node, UNREACHABLE, counts, dial, eventually, node};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::{Families, Pod, PodSpec};
use metaproxy_lab::{NODE_IP, NODE_IP6};
use rstest::rstest;

const MODES: [&str; 5] = ["plain", "nonblocking", "fastopen", "uring", "mptcp"];

fn spec(name: &'static str, families: Families) -> PodSpec {
    PodSpec {
        families,
        ..PodSpec::with_role(name, name)
    }
}

/// Returns a pod whose addresses the agent does not know (yet).
fn unreported(name: &'static str, families: Families) -> PodSpec {
    PodSpec {
        reported_ips: Some(Vec::new()),
        ..spec(name, families)
    }
}

fn v6only(pod: &Pod) -> crate::common::Outcomes {
    dial(pod, &["--to", IMDS6, "--mode", "v6only"])
}

/// Starts an agent with listeners at these addresses of the node.
fn agent_at(node: &Node, addresses: &[std::net::IpAddr]) -> Agent {
    let flags: Vec<_> = addresses
        .iter()
        .flat_map(|ip| ["--listen-address".to_owned(), ip.to_string()])
        .collect();
    let spec = node.spec();
    let spec = AgentSpec {
        flags: spec.flags.into_iter().chain(flags).collect(),
        ..spec
    };
    Agent::start(&node.lab, &spec).unwrap()
}

/// The same holds if a guard has replaced the address by a sentinel.
#[rstest]
#[case::alone(false)]
#[case::behind_a_guard(true)]
fn a_pod_with_ipv4_only_is_served_at_the_ipv6_address_too_by_a_node_with_both(#[case] is_guarded: bool) {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(unreported("four", Families::Ipv4)).unwrap();
    let _guard = is_guarded.then(|| node.closed_guard());
    let agent = node.agent();
    assert_eq!(agent.listeners().unwrap().len(), 2, "IPv4 and IPv6");
    for to in [IMDS, MAPPED, IMDS6] {
        for mode in MODES {
            let got = dial(&pod, &["--to", to, "--mode", mode]);
            assert_eq!(got, counts([("four", 1)]), "{mode} to {to}");
        }
    }
    assert_eq!(dial(&pod, &["--to", IMDS6, "--peername"]), counts([(IMDS6, 1)]));
    assert_eq!(node.imds.seen_from_pods(), []);
}

/// The cluster's pods have IPv6 addresses. The agent knows that from the pods or, before any pod has an address, from
/// the Services.
#[rstest]
#[case::by_its_address(spec("six", Families::Ipv6), None)]
#[case::by_the_services(unreported("six", Families::Ipv6), Some("fd00:10:96::1"))]
fn a_pod_with_ipv6_only_is_served_by_a_node_with_both(#[case] pod: PodSpec, #[case] services: Option<&str>) {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(pod).unwrap();
    let mut spec = node.spec();
    if let Some(services) = services {
        spec.environment
            .push(("KUBERNETES_SERVICE_HOST".to_owned(), services.to_owned()));
    }
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    for to in [MAPPED, IMDS6] {
        for mode in MODES {
            let got = dial(&pod, &["--to", to, "--mode", mode]);
            assert_eq!(got, counts([("six", 1)]), "{mode} to {to}");
        }
    }
    assert_eq!(v6only(&pod), counts([("six", 1)]));
}

#[test]
fn pods_of_either_family_and_of_both_are_served_beside_each_other() {
    let Some(node) = node() else { return };
    let pod = |name, families| node.lab.pod(spec(name, families)).unwrap();
    let (four, six, dual) = (
        pod("four", Families::Ipv4),
        pod("six", Families::Ipv6),
        pod("dual", Families::Both),
    );
    let _agent = node.agent();
    for (pod, name) in [(&four, "four"), (&six, "six"), (&dual, "dual")] {
        for to in [MAPPED, IMDS6] {
            assert_eq!(dial(pod, &["--to", to]), counts([(name, 1)]), "{name} to {to}");
        }
    }
    assert_eq!(dial(&four, &["--to", IMDS]), counts([("four", 1)]));
    assert_eq!(dial(&dual, &["--to", IMDS]), counts([("dual", 1)]));
    assert_eq!(v6only(&six), counts([("six", 1)]));
    assert_eq!(v6only(&dual), counts([("dual", 1)]));
    assert_eq!(
        v6only(&four),
        counts([(UNREACHABLE, 1)]),
        "it has no way to any listener"
    );
    assert_eq!(node.imds.seen_from_pods(), []);
}

/// In a cluster of IPv4 pods, a network plugin gives one pod an IPv6 address only.
#[test]
fn a_pod_of_another_family_is_served_as_soon_as_its_address_is_known() {
    let Some(node) = node() else { return };
    let _four = node.lab.pod(spec("four", Families::Ipv4)).unwrap();
    let _agent = node.agent();
    let six = node.lab.pod(spec("six", Families::Ipv6)).unwrap();
    eventually("it is served", || {
        dial(&six, &["--to", IMDS6]) == counts([("six", 1)])
    });
    assert_eq!(v6only(&six), counts([("six", 1)]));
}

/// The pod has both families. The address to which a socket is bound, or can be bound, decides which listener serves
/// it.
#[test]
fn a_bound_socket_is_served_at_the_address_to_which_it_is_bound() {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(spec("dual", Families::Both)).unwrap();
    let _agent = node.agent();
    let v6 = format!("[fd00:244:0:{:x}::2]", pod.number());
    let mapped = format!("[::ffff:{}]", pod.ip());
    for source in [
        format!("{v6}:0"),
        format!("{v6}:26000"),
        format!("{mapped}:0"),
        format!("{mapped}:26001"),
        "[::]:0".to_owned(),
        "[::]:26002".to_owned(),
    ] {
        let got = dial(&pod, &["--to", IMDS6, "--source", &source]);
        assert_eq!(got, counts([("dual", 1)]), "from {source}");
    }
    let bound_v6only = dial(
        &pod,
        &["--to", IMDS6, "--mode", "v6only", "--source", &format!("{v6}:0")],
    );
    assert_eq!(bound_v6only, counts([("dual", 1)]));
}

/// Such a socket can be bound to any address, so the bind that detects IPV6_V6ONLY succeeds. It must be undone.
#[rstest]
#[case("--freebind")]
#[case("--transparent")]
fn a_socket_that_may_be_bound_to_any_address_keeps_the_pods_own(#[case] option: &str) {
    let Some(node) = node() else { return };
    let pods = [("four", Families::Ipv4), ("dual", Families::Both)];
    let pods = pods.map(|(name, families)| (name, node.lab.pod(spec(name, families)).unwrap()));
    let _agent = node.agent();
    for (name, pod) in &pods {
        assert_eq!(dial(pod, &["--to", IMDS6, option]), counts([(*name, 1)]));
    }
    let dual = &pods[1].1;
    let got = dial(dual, &["--to", IMDS6, option, "--mode", "v6only"]);
    assert_eq!(got, counts([("dual", 1)]));
}

/// A connection of an IPV6_V6ONLY socket that no listener can take is refused. It never reaches the node's own
/// service.
#[test]
fn a_node_with_ipv4_only_serves_every_socket_but_one_that_is_v6only() {
    let Some(node) = node() else { return };
    let pods = [("four", Families::Ipv4), ("dual", Families::Both)];
    let pods = pods.map(|(name, families)| (name, node.lab.pod(spec(name, families)).unwrap()));
    let _agent = agent_at(&node, &[NODE_IP.into()]);
    for (name, pod) in &pods {
        for to in [IMDS, MAPPED, IMDS6] {
            assert_eq!(dial(pod, &["--to", to]), counts([(*name, 1)]), "{name} to {to}");
        }
        assert_eq!(v6only(pod), counts([(UNREACHABLE, 1)]));
    }
    assert_eq!(node.imds.seen_from_pods(), []);
}

#[test]
fn a_node_with_ipv6_only_serves_every_ipv6_socket() {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(spec("dual", Families::Both)).unwrap();
    let _agent = agent_at(&node, &[NODE_IP6.into()]);
    for to in [MAPPED, IMDS6] {
        assert_eq!(dial(&pod, &["--to", to]), counts([("dual", 1)]), "{to}");
    }
    assert_eq!(v6only(&pod), counts([("dual", 1)]));
    assert_eq!(dial(&pod, &["--to", IMDS]), counts([(UNREACHABLE, 1)]));
    assert_eq!(node.imds.seen_from_pods(), []);
}

/// The choice between two listeners does not apply to a UDP socket.
#[test]
fn udp_to_the_metadata_address_is_not_touched() {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(spec("dual", Families::Both)).unwrap();
    let udp = node
        .lab
        .aws()
        .run(|| std::net::UdpSocket::bind(IMDS6).unwrap())
        .unwrap();
    udp.set_read_timeout(Some(std::time::Duration::from_secs(2)))
        .unwrap();
    let _agent = node.agent();
    let script = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.connect(('fd00:ec2::254', 80)); \
                  s.send(b'x')";
    let sent = pod
        .command("python3")
        .unwrap()
        .args(["-c", script])
        .status()
        .unwrap();
    assert!(sent.success());
    assert_eq!(udp.recv(&mut [0; 8]).unwrap(), 1);
}
