//! The guard: what it must not touch, what stands beside it, and what it does when agents come and go.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::process::{Command, Stdio};

use common::{
    IMDS, IMDS6, MAPPED, Node, agent_binary, client_binary, counts, dial, eventually, node, outcomes,
};
use nix::sys::signal::Signal;
use xtask::lab::agent::Agent;
use xtask::lab::foreign::{Attach, Foreign, attach_to_egress, detach_links_of};
use xtask::lab::netns::{Netns, ip};
use xtask::lab::pod::{PodSpec, command_in};
use xtask::lab::recorder::Recorder;
use xtask::lab::{bpf, leftovers};

const NOTHING: [String; 0] = [];
const UNREACHABLE: &str = "error ENETUNREACH: Network is unreachable";

fn guard(node: &Node, flags: &[&str]) -> Agent {
    Agent::guard(&node.lab, agent_binary(), flags).unwrap()
}

fn closed_guard(node: &Node) -> Agent {
    let guard = guard(node, &["--close", "at-once"]);
    guard.wait_for("guard closed").unwrap();
    guard
}

#[test]
fn the_nodes_own_namespace_and_other_ports_are_left_alone() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let host_network = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::without_role("cni")
        })
        .unwrap();
    let other_ports: Vec<_> = ["169.254.169.254:81", "[fd00:ec2::254]:81"]
        .map(|address| {
            let listen = || std::net::TcpListener::bind(address).unwrap();
            (address, node.lab.aws().run(listen).unwrap())
        })
        .into();
    let udp = node
        .lab
        .aws()
        .run(|| std::net::UdpSocket::bind("169.254.169.254:80").unwrap())
        .unwrap();
    let _guard = closed_guard(&node);
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(
            node.host_dial(&["--to", to, "--count", "5"]),
            counts([("node", 5)]),
            "a process of the node, {to}"
        );
        assert_eq!(
            dial(&host_network, &["--to", to]),
            counts([("node", 1)]),
            "a hostNetwork pod, {to}"
        );
        assert_eq!(dial(&a, &["--to", to]), counts([(UNREACHABLE, 1)]), "{to}");
    }
    for (address, _) in &other_ports {
        assert_eq!(
            dial(&a, &["--to", address, "--peername"]),
            counts([(*address, 1)]),
            "another port"
        );
    }
    let script = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('169.254.169.254', 80))";
    assert!(
        a.command("python3")
            .unwrap()
            .args(["-c", script])
            .status()
            .unwrap()
            .success()
    );
    udp.set_read_timeout(Some(std::time::Duration::from_secs(2)))
        .unwrap();
    assert_eq!(udp.recv(&mut [0; 8]).unwrap(), 1, "UDP to port 80");
    // What the node makes by hand is its own business too.
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    for words in [
        &["--way", "raw"][..],
        &["--way", "raw-tcp"],
        &["--way", "raw", "--to", IMDS6],
    ] {
        let before: usize = recorder.seen().values().sum();
        let sent = node
            .host_command(client_binary())
            .arg("craft")
            .args(words)
            .output()
            .unwrap();
        assert!(sent.status.success(), "{sent:?}");
        eventually("the node's own packets arrive", || {
            recorder.seen().values().sum::<usize>() > before
        });
    }
}

/// Containers that are no pods (docker's, say) and virtual machines look like pods at an uplink: neither has a socket.
#[test]
fn forwarded_traffic_of_plain_containers_is_dropped_with_packets_and_passes_with_connect() {
    let Some(node) = node() else { return };
    let container = Netns::new(&format!("{}-container", node.lab.name())).unwrap();
    let (inside, outside) = (container.name(), node.lab.node().name());
    ip(&[
        "-n", outside, "link", "add", "ctr0", "type", "veth", "peer", "name", "eth0", "netns", inside,
    ])
    .unwrap();
    node.lab.node().add_address("ctr0", "10.244.99.1/30").unwrap();
    container.add_address("eth0", "10.244.99.2/30").unwrap();
    ip(&["-n", outside, "link", "set", "ctr0", "up"]).unwrap();
    ip(&["-n", inside, "link", "set", "eth0", "up"]).unwrap();
    ip(&["-n", inside, "route", "add", "default", "via", "10.244.99.1"]).unwrap();
    let dial_from_container = || {
        let mut command =
            command_in(&client_binary(), Some(&node.lab.host_cgroup()), container.file()).unwrap();
        command.args(["dial", "--timeout", "700"]);
        outcomes(command.stdout(Stdio::piped()).spawn().unwrap())
    };
    assert_eq!(dial_from_container(), counts([("node", 1)]));
    let packets = closed_guard(&node);
    let got = dial_from_container();
    assert!(got.keys().all(|outcome| outcome.starts_with("error ")), "{got:?}");
    drop(packets);
    let connect = guard(&node, &["--close", "at-once", "--guard", "connect"]);
    connect.wait_for("guard closed").unwrap();
    assert_eq!(dial_from_container(), counts([("node", 1)]));
}

/// A second uplink with a policy route of its own, as a secondary ENI has it.
#[test]
fn uplinks_are_followed_as_they_come_and_go() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let guard = closed_guard(&node);
    guard.wait_for("uplink=up0").unwrap();
    let (here, there) = (node.lab.node().name(), node.lab.aws().name());
    let add = || {
        ip(&[
            "-n", here, "link", "add", "up1", "type", "veth", "peer", "name", "eth1", "netns", there,
        ])
        .unwrap();
        node.lab.node().add_address("up1", "10.201.0.1/24").unwrap();
        node.lab.aws().add_address("eth1", "10.201.0.2/24").unwrap();
        ip(&["-n", here, "link", "set", "up1", "up"]).unwrap();
        ip(&["-n", there, "link", "set", "eth1", "up"]).unwrap();
        ip(&[
            "-n",
            here,
            "route",
            "add",
            "default",
            "via",
            "10.201.0.2",
            "table",
            "77",
        ])
        .unwrap();
        ip(&["-n", here, "rule", "add", "iif", "pod1", "lookup", "77"]).unwrap();
    };
    let remove = || {
        ip(&["-n", here, "rule", "delete", "iif", "pod1", "lookup", "77"]).unwrap();
        ip(&["-n", here, "link", "delete", "up1"]).unwrap();
    };
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let craft = || {
        let sent = a
            .command(client_binary())
            .unwrap()
            .args(["craft", "--way", "raw"])
            .output()
            .unwrap();
        assert!(sent.status.success(), "{sent:?}");
        std::thread::sleep(std::time::Duration::from_millis(150));
        recorder.take_from_others()
    };
    for round in 1..=2 {
        add();
        guard.wait_for_nth("uplink=up1", round).unwrap();
        assert_eq!(craft(), 0);
        remove();
        eventually("its program went with it", || {
            bpf::ours().iter().filter(|name| name.starts_with("link")).count() == 3
        });
        assert_eq!(craft(), 0, "by the first uplink");
    }
    add();
    guard.wait_for_nth("uplink=up1", 3).unwrap();
    drop(guard);
    eventually("without a guard it arrives by the second uplink", || craft() > 0);
    remove();
}

#[test]
fn it_stands_first_in_the_chain_of_an_uplink() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let foreign = attach_to_egress(node.lab.node(), "up0").unwrap();
    let craft = || {
        let mut command = a.command(client_binary()).unwrap();
        assert!(
            command
                .args(["craft", "--way", "raw"])
                .output()
                .unwrap()
                .status
                .success()
        );
        std::thread::sleep(std::time::Duration::from_millis(150));
        recorder.take_from_others()
    };
    eventually("it arrives", || craft() > 0);
    let _guard = closed_guard(&node);
    assert_eq!(craft(), 0, "though somebody else lets everything pass");
    drop(foreign);
}

#[test]
fn programs_that_somebody_else_detaches_are_missed_and_attached_again() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = Agent::start(
        &node.lab,
        &node.spec().with(&["--admin-address", "10.200.0.1:9808"]),
    )
    .unwrap();
    let guard = closed_guard(&node);
    let ready = || {
        let mut command = node.host_command("curl");
        let output = command
            .args(["-s", "http://10.200.0.1:9808/readyz?verbose"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ready().contains("[+]interception ok"), "{}", ready());
    let seen_before = node.imds.seen_from_pods();
    for (round, name) in [
        "mp_connect4",
        "mp_sock_ops",
        "mp_getpeername4",
        "mp_guard4",
        "mp_uplink_eth",
    ]
    .into_iter()
    .enumerate()
    {
        let of_guard = name.contains("guard") || name.contains("uplink");
        assert_eq!(
            detach_links_of(name).unwrap(),
            if of_guard { 2 } else { 1 },
            "{name}, of agent and guard"
        );
        eventually("it is there again", || detached(&node) == 0);
        assert_eq!(dial(&a, &["--peername"]), counts([(IMDS, 1)]), "{name}");
        assert_eq!(dial(&a, &[]), counts([("role-a", 1)]), "{name}");
        if round == 0 {
            agent.wait_for("somebody else has detached mp_connect4").unwrap();
            assert!(
                ready().contains("[!]interception degraded: somebody else has detached our programs 1 times"),
                "{}",
                ready()
            );
        }
    }
    guard.wait_for("somebody else has detached").unwrap();
    assert_eq!(node.imds.seen_from_pods(), seen_before);
}

/// Links of ours that are attached nowhere.
fn detached(node: &Node) -> usize {
    let output = node
        .host_command("sh")
        .args(["-c", "cat /proc/[0-9]*/fdinfo/* 2>/dev/null"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter(|line| {
            let target = line
                .strip_prefix("cgroup_id:")
                .or_else(|| line.strip_prefix("ifindex:"));
            target.is_some_and(|target| target.trim() == "0")
        })
        .count()
}

#[test]
fn a_program_that_wants_to_be_alone_is_named_as_the_obstacle() {
    let Some(node) = node() else { return };
    for cgroup in [node.lab.kubepods(), node.lab.cgroup()] {
        let _alone = Foreign::attach(&cgroup, Attach::Alone).unwrap();
        let mut agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(1), "{}", agent.said());
        assert!(
            agent.said().contains("another program that allows no second one"),
            "{}",
            agent.said()
        );
        let mut guard = guard(&node, &["--close", "at-once"]);
        assert_eq!(guard.wait().unwrap().code(), Some(1), "{}", guard.said());
        assert_eq!(bpf::left_over(), NOTHING);
    }
}

/// As Cilium attaches its own, at the root of the tree, before or after.
#[test]
fn programs_that_allow_others_are_stood_beside() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let before = Foreign::attach(&node.lab.cgroup(), Attach::Multi).unwrap();
    let _agent = node.agent();
    let _guard = closed_guard(&node);
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    let after = Foreign::attach(&node.lab.kubepods(), Attach::Multi).unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    drop((before, after));
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}

/// Two agents and two guards attached in every order and ended from either end. One of each is of another build where
/// `cargo xtask test --previous BINARY` names one.
#[test]
fn agents_and_guards_of_two_builds_stand_beside_each_other_in_every_order() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let previous = std::env::var_os("METAPROXY_TEST_PREVIOUS")
        .map_or_else(|| agent_binary().to_owned(), std::path::PathBuf::from);
    let before = leftovers::snapshot(node.lab.node()).unwrap();
    let mut orders = 0;
    for order in permutations(&[0, 1, 2, 3]) {
        let mut running: Vec<(bool, Agent)> = Vec::new();
        for which in &order {
            let binary = if which % 2 == 0 {
                agent_binary().to_owned()
            } else {
                previous.clone()
            };
            let is_agent = *which < 2;
            let process = if is_agent {
                let spec = xtask::lab::agent::AgentSpec {
                    binary,
                    ..node.spec()
                };
                Agent::start(&node.lab, &spec).unwrap()
            } else {
                let guard = Agent::guard(&node.lab, &binary, &["--close", "at-once"]).unwrap();
                guard.wait_for("guard closed").unwrap();
                guard
            };
            running.push((is_agent, process));
            check(&running, &a, &order);
        }
        // The oldest first in one half of the orders, the youngest first in the other.
        while !running.is_empty() {
            let index = if orders % 2 == 0 { 0 } else { running.len() - 1 };
            let (_, mut process) = running.remove(index);
            process.signal(Signal::SIGKILL).unwrap();
            process.wait().unwrap();
            if !running.is_empty() {
                check(&running, &a, &order);
            }
        }
        assert_eq!(bpf::left_over(), NOTHING, "{order:?}");
        orders += 1;
    }
    assert_eq!(orders, 24);
    assert_eq!(leftovers::snapshot(node.lab.node()).unwrap(), before);
    assert_eq!(node.imds.seen_from_pods(), []);
}

fn check(running: &[(bool, Agent)], pod: &xtask::lab::pod::Pod, order: &[usize]) {
    let served = running.iter().any(|(is_agent, _)| *is_agent);
    let want = if served { "role-a" } else { UNREACHABLE };
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(dial(pod, &["--to", to]), counts([(want, 1)]), "{to} of {order:?}");
    }
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for item in items {
        let rest: Vec<usize> = items.iter().copied().filter(|other| other != item).collect();
        for mut order in permutations(&rest) {
            order.insert(0, *item);
            all.push(order);
        }
    }
    all
}

#[test]
fn a_guard_closes_when_pods_were_served_and_stays_so_over_crashes() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let guard = guard(&node, &[]);
    guard.wait_for("guard open").unwrap();
    assert_eq!(
        dial(&a, &[]),
        counts([("node", 1)]),
        "a first installation that fails harms nobody"
    );
    let mut agent = node.agent();
    guard.wait_for("guard closed").unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    agent.signal(Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    assert_eq!(dial(&a, &[]), counts([(UNREACHABLE, 1)]));
    // Another guard knows it too.
    drop(guard);
    assert_eq!(dial(&a, &[]), counts([("node", 1)]));
    let mut guard = Agent::guard(&node.lab, agent_binary(), &[]).unwrap();
    guard.wait_for("guard closed").unwrap();
    assert_eq!(dial(&a, &[]), counts([(UNREACHABLE, 1)]));
    // Going back to observing opens it.
    let observing = node.spec().with(&["--mode", "observe"]);
    let observer = Agent::spawn(&node.lab, &observing).unwrap();
    guard.wait_for("guard open").unwrap();
    assert_eq!(dial(&a, &[]), counts([("node", 1)]));
    drop(observer);
    assert!(guard.stop().unwrap().success());
    assert_eq!(bpf::left_over(), NOTHING);
}

#[test]
fn another_contract_on_the_node_is_a_start_up_error() {
    let Some(node) = node() else { return };
    let dir = node.lab.runtime_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("instance-other.json");
    let other = r#"{"contract": 99, "version": "7.0.0", "what": "agent", "pid": 4711}"#;
    std::fs::write(&path, other).unwrap();
    let held = std::fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let mut agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(1));
    assert!(
        agent
            .said()
            .contains("metaproxy 7.0.0 (agent, pid 4711) runs on this node"),
        "{}",
        agent.said()
    );
    let mut guard = guard(&node, &[]);
    assert_eq!(guard.wait().unwrap().code(), Some(1));
    assert_eq!(bpf::ours(), NOTHING);
    drop(held);
    let _agent = node.agent();
}

#[test]
fn a_guard_that_is_to_do_nothing_is_bad_usage() {
    let output = Command::new(agent_binary())
        .args(["guard", "--guard", "off"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
}
