//! Which connections are intercepted and which are not, with real programs and real connections of every kind.

use crate::common::{IMDS, IMDS6, MAPPED, counts, dial, eventually, node, node_alone};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::PodSpec;
use rstest::rstest;

#[test]
fn connections_of_every_kind_are_intercepted_and_get_their_own_pods_role() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let _agent = node.agent();
    for to in [IMDS, MAPPED, IMDS6] {
        for mode in ["plain", "nonblocking", "fastopen", "uring", "mptcp"] {
            for (pod, role) in [(&a, "role-a"), (&b, "role-b")] {
                let got = dial(pod, &["--to", to, "--mode", mode, "--count", "3"]);
                assert_eq!(got, counts([(role, 3)]), "{mode} to {to}");
            }
        }
    }
    assert_eq!(
        dial(&a, &["--to", IMDS6, "--mode", "v6only"]),
        counts([("role-a", 1)])
    );
    assert_eq!(
        node.imds.seen_from_pods(),
        [],
        "the node's metadata service saw no pod"
    );
}

#[rstest]
#[case(IMDS)]
#[case(MAPPED)]
#[case(IMDS6)]
fn getpeername_returns_the_address_that_the_client_dialled(#[case] to: &str) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    assert_eq!(dial(&a, &["--to", to, "--peername"]), counts([(to, 1)]));
}

#[test]
fn the_node_and_hostnetwork_pods_without_a_role_reach_the_nodes_own_service() {
    let Some(node) = node() else { return };
    let host = |name, role: Option<&str>| {
        let spec = role.map_or_else(
            || PodSpec::without_role(name),
            |role| PodSpec::with_role(name, role),
        );
        node.lab
            .pod(PodSpec {
                host_network: true,
                ..spec
            })
            .unwrap()
    };
    let (unlisted, listed, malformed) = (
        host("cni", None),
        host("ingress", Some("role-ingress")),
        host("broken", Some("a b")),
    );
    let _agent = node.agent();
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(
            node.host_dial(&["--to", to]),
            counts([("node", 1)]),
            "a process of the node, {to}"
        );
        assert_eq!(
            dial(&unlisted, &["--to", to]),
            counts([("node", 1)]),
            "an unlisted hostNetwork pod, {to}"
        );
        eventually("a listed hostNetwork pod gets its role", || {
            dial(&listed, &["--to", to]) == counts([("role-ingress", 1)])
        });
        eventually("one with a malformed role is not given the node's", || {
            dial(&malformed, &["--to", to]) == counts([("ab", 1)])
        });
    }
    // A pod without a role is not intercepted any more.
    listed.write_manifest(&[]).unwrap();
    eventually("it is left alone again", || {
        dial(&listed, &[]) == counts([("node", 1)])
    });
}

/// A hostNetwork pod asks for a role, and it is not known yet whether its namespace permits the role. Its request is
/// held like that of any other pod. It does not get the node's role meanwhile.
#[test]
fn a_hostnetwork_pod_that_asks_for_a_role_is_never_given_the_nodes_instead() {
    let Some(node) = node() else { return };
    let pod = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::with_role("a", "role-a")
        })
        .unwrap();
    let flags = ["--sts-endpoint", &metaproxy_lab::sts::FakeSts::url()]
        .map(str::to_owned)
        .to_vec();
    let _agent = Agent::start(&node.lab, &AgentSpec { flags, ..node.spec() }).unwrap();
    // This holds from the first moment, because the pod was listed before anything was attached.
    assert_eq!(
        dial(&pod, &[]),
        counts([("status 503", 1)]),
        "its namespace is not known yet"
    );
    // If two pods have the same UID, the agent cannot know which of them a cgroup belongs to.
    let text = format!(
        "kind: Pod\nmetadata: {{name: other, namespace: apps, uid: {}}}\n",
        pod.uid()
    );
    node.lab.manifest("other.yaml", &text).unwrap();
    eventually("it gets nothing", || {
        dial(&pod, &[]) == counts([("status 404", 1)])
    });
}

#[test]
fn the_mount_and_the_pods_cgroup_are_found() {
    let Some(node) = node_alone() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let spec = AgentSpec {
        passes_cgroup: false,
        ..node.spec()
    };
    let agent = Agent::start(&node.lab, &spec).unwrap();
    agent
        .wait_for(&format!("cgroup={}", node.lab.kubepods().display()))
        .unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}

#[test]
fn other_addresses_and_ports_are_not_touched() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let servers: Vec<_> = ["169.254.169.254:81", "10.200.0.2:80", "[fd00:ec2::254]:81"]
        .map(|address| {
            (
                address,
                node.lab
                    .aws()
                    .run(|| std::net::TcpListener::bind(address).unwrap())
                    .unwrap(),
            )
        })
        .into();
    let _agent = node.agent();
    for (address, server) in &servers {
        assert_eq!(
            dial(&a, &["--to", address, "--peername"]),
            counts([(*address, 1)])
        );
        let (_, peer) = server.accept().unwrap();
        assert!(
            peer.ip().to_string().contains("244"),
            "the pod's own connection arrived: {peer}"
        );
    }
    assert_eq!(
        dial(&a, &["--to", "10.200.0.2:9"]),
        counts([("error ECONNREFUSED: Connection refused", 1)])
    );
}

#[test]
fn a_proxy_in_the_pod_that_dials_the_listener_again_is_served_as_its_pod() {
    use std::io::BufRead as _;
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let listener = agent
        .listeners()
        .unwrap()
        .into_iter()
        .find(|address| address.is_ipv4())
        .unwrap();
    let mut proxy = a
        .command(crate::common::client_binary())
        .unwrap()
        .args(["redirect-proxy", "--port", "15001", "--mark", "7"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(proxy.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let rule = [
        "-t",
        "nat",
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-m",
        "mark",
        "!",
        "--mark",
        "7",
        "-j",
        "REDIRECT",
        "--to-ports",
        "15001",
    ];
    assert!(
        a.command("iptables")
            .unwrap()
            .args(rule)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(
        dial(&a, &["--count", "20"]),
        counts([("role-a", 20)]),
        "through the proxy, at {listener}"
    );
    crate::common::end_running(&mut proxy);
    assert_eq!(
        dial(&a, &[]),
        counts([("error ECONNREFUSED: Connection refused", 1)]),
        "it did go through the proxy"
    );
    drop(agent);
    node.assert_nothing_loaded();
}

/// The policy is enforced as by a network plugin: at the pod's end of its link, where packets already have the
/// listener's address.
#[test]
fn a_pod_is_served_if_its_egress_policy_allows_the_listener_and_gets_nothing_otherwise() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let listeners = agent.listeners().unwrap();
    let listener = listeners.iter().find(|address| address.is_ipv4()).unwrap();
    let filter = |words: &[&str]| {
        let status = a.command("iptables").unwrap().args(words).status().unwrap();
        assert!(status.success(), "{words:?}");
    };
    filter(&["-P", "OUTPUT", "DROP"]);
    let quick = ["--timeout", "700"];
    let got = dial(&a, &quick);
    assert!(got.keys().all(|outcome| !outcome.contains("role")), "{got:?}");
    let (address, port) = (listener.ip().to_string(), listener.port().to_string());
    let allowed = [
        "-A", "OUTPUT", "-p", "tcp", "-d", &address, "--dport", &port, "-j", "ACCEPT",
    ];
    filter(&allowed);
    assert_eq!(dial(&a, &["--count", "5"]), counts([("role-a", 5)]));
    // Allowing the metadata service's own address is neither needed nor sufficient.
    filter(&["-F", "OUTPUT"]);
    filter(&[
        "-A",
        "OUTPUT",
        "-p",
        "tcp",
        "-d",
        "169.254.169.254",
        "-j",
        "ACCEPT",
    ]);
    let got = dial(&a, &quick);
    assert!(got.keys().all(|outcome| !outcome.contains("role")), "{got:?}");
    assert_eq!(node.imds.seen_from_pods(), []);
}
