//! The guard: the traffic that it must not touch, and how it reacts to uplinks and agents that are added and removed.

use std::process::{Command, Stdio};

use crate::common::{
    IMDS, IMDS6, MAPPED, UNREACHABLE, agent_binary, client_binary, counts, dial, eventually, node, outcomes,
};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::netns::{Netns, ip};
use metaproxy_lab::pod::{PodSpec, command_in};
use metaproxy_lab::recorder::Recorder;
use nix::sys::signal::Signal;

#[test]
fn the_guard_does_not_touch_the_nodes_own_namespace_and_other_ports() {
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
    let _guard = node.closed_guard();
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
    // Packets that the node itself crafts pass too.
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    for words in [
        &["--method", "raw"][..],
        &["--method", "raw-tcp"],
        &["--method", "raw", "--to", IMDS6],
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

#[test]
fn a_guard_that_closes_at_its_start_logs_no_other_state_before() {
    let Some(node) = node() else { return };
    let said = node.closed_guard().logged();
    for other in ["waiting", "guard open", "not kept out"] {
        assert!(!said.contains(other), "{said}");
    }
}

/// At an uplink, packets of virtual machines and of containers that are not pods (such as docker's) look like packets
/// of pods, because a forwarded packet has no socket.
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
    let packets = node.closed_guard();
    let got = dial_from_container();
    assert!(got.keys().all(|outcome| outcome.starts_with("error ")), "{got:?}");
    drop(packets);
    let connect = node.guard(&["--close", "at-once", "--guard", "connect"]);
    connect.wait_for("guard closed").unwrap();
    assert_eq!(dial_from_container(), counts([("node", 1)]));
}

/// The second uplink has a policy route of its own, like a secondary ENI.
#[test]
fn the_guard_follows_uplinks_that_are_added_and_removed() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let guard = node.closed_guard();
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
            .args(["craft", "--method", "raw"])
            .output()
            .unwrap();
        assert!(sent.status.success(), "{sent:?}");
        recorder.settle(node.lab.node()).unwrap();
        recorder.take_from_others()
    };
    for round in 1..=2 {
        add();
        guard.wait_for_nth("uplink=up1", round).unwrap();
        assert_eq!(craft(), 0);
        remove();
        eventually("its program went with it", || {
            node.loaded()
                .iter()
                .filter(|name| name.starts_with("link"))
                .count()
                == 3
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
fn a_guard_closes_once_pods_were_served_and_stays_closed_after_crashes() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let guard = node.guard(&[]);
    guard.wait_for("guard open").unwrap();
    assert_eq!(
        dial(&a, &[]),
        counts([("node", 1)]),
        "a first installation that fails changes nothing for pods"
    );
    let mut agent = node.agent();
    guard.wait_for("guard closed").unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    agent.signal(Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    assert_eq!(dial(&a, &[]), counts([(UNREACHABLE, 1)]));
    // A new guard knows that pods were served, and closes at its start.
    drop(guard);
    assert_eq!(dial(&a, &[]), counts([("node", 1)]));
    let mut guard = node.guard(&[]);
    guard.wait_for("guard closed").unwrap();
    assert_eq!(dial(&a, &[]), counts([(UNREACHABLE, 1)]));
    // An agent in observe mode opens the guard.
    let observing = node.spec().with(&["--mode", "observe"]);
    let observer = Agent::spawn(&node.lab, &observing).unwrap();
    guard.wait_for("guard open").unwrap();
    assert_eq!(dial(&a, &[]), counts([("node", 1)]));
    drop(observer);
    assert!(guard.stop().unwrap().success());
    node.assert_nothing_loaded();
}

#[test]
fn the_guard_command_with_guard_off_is_bad_usage() {
    let output = Command::new(agent_binary())
        .args(["guard", "--guard", "off"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
}

/// An update ends the older guard when the newer one is ready.
#[test]
fn the_guards_probe_is_ready_while_it_is_open_or_closed_but_not_before_it_can_attach() {
    let Some(node) = node() else { return };
    let probe = |question: &str| {
        let mut command = node.host_command(agent_binary());
        let output = command
            .args(["probe", question, "--runtime-dir"])
            .arg(node.lab.runtime_dir())
            .output()
            .unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.success(), said)
    };
    assert!(!probe("live").0, "nothing runs");
    let open = node.guard(&[]);
    open.wait_for("guard open").unwrap();
    assert_eq!(probe("ready"), (true, "[+]guard ok\n".to_owned()));
    drop(open);
    let closed = node.closed_guard();
    assert_eq!(probe("live"), (true, "ok\n".to_owned()));
    assert_eq!(probe("ready"), (true, "[+]guard ok\n".to_owned()));
    let said = closed.logged();
    assert!(
        !said.contains("guard waiting"),
        "it is attached from the start: {said}"
    );
    drop(closed);
    let nowhere = node.lab.cgroup().join("not-made-yet");
    let words = format!(
        "guard --guard connect --close at-once --cgroup {} --runtime-dir {}",
        nowhere.display(),
        node.lab.runtime_dir().display()
    );
    let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let waiting = Agent::run(agent_binary(), &words).unwrap();
    waiting.wait_for("guard waiting").unwrap();
    let (is_ready, said) = probe("ready");
    assert!(
        !is_ready && said.starts_with("[-]guard failed: the pods' cgroup"),
        "{said}"
    );
    std::fs::create_dir(&nowhere).unwrap();
    waiting.wait_for("guard closed").unwrap();
    assert!(probe("ready").0);
    drop(waiting);
    std::fs::remove_dir(&nowhere).unwrap();
}
