//! Clients that reach the listener and are not a pod of this node. Their connections are closed at once without an
//! answer.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::common::attackers::{Attacker, CLOSED, assert_ready, unlimited_agent};
use crate::common::identity::{assert_only, v4_listener};
use crate::common::{Outcomes, client_binary, counts, dial, node, outcomes};
use metaproxy_lab::pod::{Pod, PodSpec, command_in};

/// The maximum time until the agent closes a connection. It has nothing to wait for, because it can never identify
/// the caller.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

#[test]
fn a_connection_of_no_pod_of_this_node_is_closed_without_an_answer() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = unlimited_agent(&node);
    let containers = node.lab.cgroup().join("system.slice/docker-0123456789ab.scope");
    std::fs::create_dir_all(&containers).unwrap();
    let host = node.lab.host_cgroup();
    let rows = [
        (
            "a process of the node",
            Some(host.as_path()),
            node.lab.node().file(),
        ),
        (
            "a process of the node in no cgroup of the lab",
            None,
            node.lab.node().file(),
        ),
        ("another node", Some(host.as_path()), node.lab.aws().file()),
        (
            "a plain container",
            Some(containers.as_path()),
            a.netns().unwrap().file(),
        ),
        (
            "a process of the node in a pod's namespace",
            Some(host.as_path()),
            a.netns().unwrap().file(),
        ),
    ];
    let mut tried = 0;
    for listener in agent.listeners().unwrap().iter().map(ToString::to_string) {
        for (who, cgroup, netns) in &rows {
            let mut command = command_in(&client_binary(), *cgroup, netns).unwrap();
            let started = Instant::now();
            let child = command
                .args(["dial", "--to", &listener, "--count", "50", "--threads", "2"])
                .stdout(Stdio::piped())
                .spawn();
            let got = outcomes(child.unwrap());
            assert_only(&got, &CLOSED, &format!("{who} at {listener}"));
            assert_eq!(got.values().sum::<usize>(), 50, "{who}: {got:?}");
            assert!(
                started.elapsed() < CLOSE_TIMEOUT,
                "{who}: {:?}",
                started.elapsed()
            );
            tried += 1;
        }
        assert_eq!(dial(&a, &["--to", &listener]), counts([("role-a", 1)]), "a pod");
    }
    assert!(tried >= 10, "both families: {tried}");
    assert_ready(&node);
}

/// Sends connections of hand-made packets from a pod. A pod cannot have a process outside of the pods' cgroup, but it
/// can send packets without a socket.
fn hand_made(pod: &Pod, listener: &str, option: &str) {
    let own = pod.ip().to_string();
    let words = [
        "--privileges",
        "default",
        "hand-made",
        "--listener",
        listener,
        "--own",
        &own,
        "--option",
        option,
    ];
    let mut attacker = Attacker::start(pod, &words);
    attacker.wait_for("closed", 100);
    let counters = attacker.end();
    println!("{option:?}: {counters:?}");
    assert_eq!(counters.get("answers"), None, "{option}: {counters:?}");
}

#[test]
fn a_connection_that_a_pod_makes_without_a_socket_is_closed_without_an_answer() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let agent = unlimited_agent(&node);
    let listener = v4_listener(&agent);
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    for pod in [&a, &victim] {
        let id = std::fs::metadata(pod.cgroup()).unwrap().ino();
        let claim = [&[253, 23, b'M', b'P'][..], &id.to_le_bytes()[..5]].concat();
        let zeros = [&claim[..], &[0; 14]].concat();
        let ones = [&claim[..], &[0xff; 14]].concat();
        let listeners = [253, 12, b'M', b'P', 0, 0, 0, 0, 0, 0, 0, 0];
        let options: [&[u8]; 6] = [
            &[],
            &zeros,
            &ones,
            // The lengths are that of an option without the second tag, that of the listener's own option, and one
            // beyond the end of the header.
            &[&[253, 16, b'M', b'P'][..], &claim[4..], &[0; 7]].concat(),
            &listeners,
            &[253, 60, b'M', b'P'],
        ];
        for option in options {
            hand_made(&a, &listener, &hexadecimal(option));
        }
    }
    let got: Outcomes = dial(&victim, &["--count", "20"]);
    assert_eq!(got, counts([("role-victim", 20)]));
    assert_ready(&node);
}
