//! Attempts to bypass the redirection. A recorder on the link to the metadata service must see no packet of a pod. If
//! a test sends packets past the connect hooks, it first shows that they arrive without an agent.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::{
    IMDS, IMDS6, MAPPED, Node, Outcomes, UNREACHABLE, client_binary, counts, dial, eventually, node, outcomes,
};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec, command_in};
use metaproxy_lab::recorder::Recorder;
use rstest::rstest;

fn recorder(node: &Node) -> Recorder {
    Recorder::start(node.lab.aws()).unwrap()
}

/// Sends packets made by hand from a pod.
fn craft(pod: &Pod, words: &[&str]) {
    let next_hop = hardware_address(pod);
    let output = pod
        .command(client_binary())
        .unwrap()
        .args(["craft", "--next-hop", &next_hop])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// Returns the hardware address of the node's end of the pod's link.
fn hardware_address(pod: &Pod) -> String {
    let path = format!("/sys/class/net/pod{}/address", pod.number());
    let output = std::process::Command::new("ip")
        .args(["netns", "exec", pod.node_netns(), "cat", &path])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[rstest]
#[case::raw_ip(&["--method", "raw"])]
#[case::raw_ip_with_options(&["--method", "raw-options"])]
#[case::raw_ip_in_fragments(&["--method", "raw-fragments"])]
#[case::raw_tcp(&["--method", "raw-tcp"])]
#[case::packet_socket(&["--method", "packet"])]
#[case::raw_ip_v6(&["--method", "raw", "--to", IMDS6])]
#[case::raw_ip_v6_with_extension_headers(&["--method", "raw-options", "--to", IMDS6])]
#[case::raw_tcp_v6(&["--method", "raw-tcp", "--to", IMDS6])]
#[case::packet_socket_v6(&["--method", "packet", "--to", IMDS6])]
#[case::raw_ip_from_another_pods_address(&["--method", "raw", "--source", "10.244.77.2"])]
fn packets_made_by_hand_do_not_leave_the_node(#[case] words: &[&str]) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    // Without this filter, packets with any source address arrive, as on a node that does not filter by source.
    for device in ["all", &format!("pod{}", a.number())] {
        node.lab
            .node()
            .sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")
            .unwrap();
    }
    let recorder = recorder(&node);
    let arrived = || {
        craft(&a, words);
        recorder.settle(node.lab.node()).unwrap();
        recorder.take_from_others()
    };
    // On a new link, IPv6 is usable only after some time.
    eventually("nothing stops it yet", || arrived() > 0);
    let mut agent = node.agent();
    assert_eq!(arrived(), 0, "an agent with its guard");
    let guard = node.closed_guard();
    assert_eq!(arrived(), 0, "agent and guard");
    agent.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    assert_eq!(arrived(), 0, "a guard alone");
    drop(guard);
    node.assert_nothing_loaded();
    assert!(arrived() > 0, "nothing stops it any more");
}

/// With an agent and a guard each connection gets the pod's own role. With a guard alone each is refused.
#[test]
fn connections_of_every_kind_reach_the_agent_or_fail() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let own = |port: u16| format!("{}:{port}", a.ip());
    let (source, again, other) = (own(0), own(31_000), own(31_001));
    let mut rows: Vec<(String, Vec<&str>)> = Vec::new();
    for to in [IMDS, MAPPED, IMDS6, "255.255.255.255:80", "[ff00:ec2::254]:80"] {
        for mode in ["plain", "nonblocking", "fastopen", "uring", "mptcp"] {
            rows.push((format!("{mode} to {to}"), vec!["--to", to, "--mode", mode]));
        }
    }
    let others: [(&str, Vec<&str>); 6] = [
        ("IPV6_V6ONLY", vec!["--to", IMDS6, "--mode", "v6only"]),
        ("SO_BINDTODEVICE", vec!["--device", "eth0"]),
        ("SO_MARK", vec!["--mark", "7"]),
        ("a bound source address", vec!["--source", &source]),
        ("a bound source port", vec!["--source", &again]),
        (
            "a source port that is used again and again",
            vec!["--source", &again, "--reuse-port", "--count", "20"],
        ),
    ];
    rows.extend(others.map(|(name, words)| (name.to_owned(), words)));
    let recorder = recorder(&node);
    let agent = node.agent();
    let guard = node.closed_guard();
    for (name, words) in &rows {
        let got = dial(&a, words);
        assert_eq!(got.keys().collect::<Vec<_>>(), ["role-a"], "{name}: {got:?}");
    }
    drop(agent);
    for (name, words) in &rows {
        // The addresses and ports of the connections above are still in use.
        let words: Vec<&str> = words
            .iter()
            .map(|word| if *word == again { other.as_str() } else { *word })
            .collect();
        let got = dial(&a, &[&words[..], &["--timeout", "900"]].concat());
        assert_eq!(
            got.keys().collect::<Vec<_>>(),
            [UNREACHABLE],
            "{name}, with a guard alone"
        );
    }
    drop(guard);
    recorder.settle(node.lab.node()).unwrap();
    assert_eq!(recorder.take_from_others(), 0);
    // The recorder would have seen a connection: without agent and guard it sees this one.
    assert_eq!(dial(&a, &[]), counts([("node", 1)]));
    recorder.settle(node.lab.node()).unwrap();
    assert!(recorder.take_from_others() > 0);
}

#[test]
fn with_a_guard_alone_connections_fail_at_once() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _guard = node.closed_guard();
    for (to, mode) in [
        (IMDS, "plain"),
        (MAPPED, "plain"),
        (IMDS6, "plain"),
        (IMDS6, "v6only"),
        (IMDS, "nonblocking"),
        (IMDS, "mptcp"),
        (IMDS, "fastopen"),
    ] {
        let start = std::time::Instant::now();
        let got = dial(&a, &["--to", to, "--mode", mode]);
        assert_eq!(got, counts([(UNREACHABLE, 1)]), "{mode} to {to}");
        assert!(start.elapsed() < Duration::from_secs(1), "{mode} to {to}");
    }
}

/// Opens a connection at its start. Sends one request on it for each line that it reads.
const KEEPS_ITS_CONNECTION: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], 80, timeout=1.5)
connection.connect()
print("connected", flush=True)
for line in iter(sys.stdin.readline, ""):
    try:
        connection.request("GET", "/latest/meta-data/iam/security-credentials/")
        print(connection.getresponse().read().decode(), flush=True)
    except Exception as error:
        print("failed", error, flush=True)
"#;

struct Keeper {
    child: Child,
    says: BufReader<std::process::ChildStdout>,
}

impl Keeper {
    fn start(pod: &Pod, to: &str) -> Self {
        let mut child = pod
            .command("python3")
            .unwrap()
            .args(["-c", KEEPS_ITS_CONNECTION, to])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = BufReader::new(child.stdout.take().unwrap());
        let mut keeper = Self { child, says };
        assert_eq!(keeper.line(), "connected");
        keeper
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.says.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn ask(&mut self) -> String {
        self.child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        self.line()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[rstest]
#[case("169.254.169.254")]
#[case("fd00:ec2::254")]
fn a_connection_opened_before_the_agents_start_fails_afterwards(#[case] to: &str) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let recorder = recorder(&node);
    let (mut keeper, mut control) = (Keeper::start(&a, to), Keeper::start(&a, to));
    assert_eq!(keeper.ask(), "node", "the node's own list");
    assert_eq!(control.ask(), "node");
    let agent = node.agent();
    recorder.take_from_others();
    assert!(keeper.ask().starts_with("failed"), "it is cut off");
    recorder.settle(node.lab.node()).unwrap();
    assert_eq!(recorder.take_from_others(), 0);
    drop(agent);
    // If the guard covers `connect()` only, the old connection still works. This shows that the test above can fail.
    let _agent = Agent::start(&node.lab, &node.spec().with(&["--guard", "connect"])).unwrap();
    assert_eq!(control.ask(), "node");
    recorder.settle(node.lab.node()).unwrap();
    assert!(recorder.take_from_others() > 0);
}

/// The programs that run are those of the cgroup in which the socket was created.
#[test]
fn a_socket_created_before_its_process_joined_the_pods_cgroup_cannot_connect() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let recorder = recorder(&node);
    let moving = || -> Outcomes {
        let netns = a.netns().unwrap();
        let mut command = command_in(&client_binary(), Some(&node.lab.host_cgroup()), netns.file()).unwrap();
        command
            .args(["dial", "--timeout", "700", "--move-to"])
            .arg(a.cgroup());
        outcomes(command.stdout(Stdio::piped()).spawn().unwrap())
    };
    assert_eq!(moving(), counts([("node", 1)]), "nothing stops it yet");
    recorder.settle(node.lab.node()).unwrap();
    let _agent = node.agent();
    recorder.take_from_others();
    let got = moving();
    assert!(
        got.keys().all(|outcome| outcome.starts_with("error ")),
        "dropped: {got:?}"
    );
    recorder.settle(node.lab.node()).unwrap();
    assert_eq!(recorder.take_from_others(), 0);
}

/// Creates a socket, and passes it to a process that asks for it.
const HAND_OVER: &str = r#"
import socket, sys
made = socket.socket()
at = socket.socket(socket.AF_UNIX)
at.bind(sys.argv[1]); at.listen(); print("ready", flush=True)
while True:
    to, _ = at.accept()
    socket.send_fds(to, [b"x"], [made.fileno()])
    made = socket.socket()
"#;

/// Receives a socket, and connects it to the metadata service.
const TAKE_OVER: &str = r#"
import socket, sys
at = socket.socket(socket.AF_UNIX); at.connect(sys.argv[1])
handed = socket.socket(fileno=socket.recv_fds(at, 1, 1)[1][0])
handed.settimeout(5); handed.connect(("169.254.169.254", 80))
handed.sendall(b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n")
print(handed.recv(65536).decode())
"#;

/// The socket gets the role of the pod that connects it. The hostNetwork pod that created the socket has no valid
/// role.
#[test]
fn a_socket_of_the_nodes_namespace_that_an_ordinary_pod_connects_gets_that_pods_role() {
    let Some(node) = node() else { return };
    let host = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::with_role("host", "not a role")
        })
        .unwrap();
    let plain = node.lab.pod(PodSpec::with_role("plain", "role-plain")).unwrap();
    let socket = node.lab.dir().join("handed");
    let mut handing = host.command("python3").unwrap();
    let mut handing = handing
        .args(["-c", HAND_OVER])
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(handing.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    let ask = || {
        let mut taking = plain.command("python3").unwrap();
        let output = taking.args(["-c", TAKE_OVER]).arg(&socket).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let answer = ask();
    assert!(answer.ends_with("node"), "nothing stops it yet: {answer}");
    let agent = node.agent();
    let answer = ask();
    assert!(answer.ends_with("role-plain"), "{answer}");
    drop(agent);
    crate::common::end_running(&mut handing);
}

#[test]
fn nested_cgroups_and_new_namespaces_change_nothing() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let recorder = recorder(&node);
    let _agent = node.agent();
    let nested = a.cgroup().join("nested");
    let disguised = a.cgroup().join(format!("pod{}", victim.uid()));
    for cgroup in [&nested, &disguised] {
        fs::create_dir_all(cgroup).unwrap();
        let netns = a.netns().unwrap();
        let mut command = command_in(&client_binary(), Some(cgroup), netns.file()).unwrap();
        let got = outcomes(command.arg("dial").stdout(Stdio::piped()).spawn().unwrap());
        assert_eq!(got, counts([("role-a", 1)]), "{}", cgroup.display());
    }
    let unshared = |flag: &str| {
        let mut command = a.command("unshare").unwrap();
        command
            .arg(flag)
            .arg(client_binary())
            .args(["dial", "--timeout", "700"]);
        outcomes(command.stdout(Stdio::piped()).spawn().unwrap())
    };
    assert_eq!(unshared("-C"), counts([("role-a", 1)]), "a cgroup namespace");
    let got = unshared("-n");
    assert!(
        got.keys().all(|outcome| outcome.starts_with("error ")),
        "a network namespace: {got:?}"
    );
    recorder.settle(node.lab.node()).unwrap();
    assert_eq!(recorder.take_from_others(), 0);
}

/// The address is translated in the pod itself (with CAP_NET_ADMIN), or on the node, as for a Service whose endpoint
/// is the metadata address.
#[rstest]
#[case::in_the_pod(true)]
#[case::by_a_service(false)]
fn an_address_that_is_translated_to_the_metadata_service_cannot_be_reached(#[case] in_pod: bool) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut iptables = if in_pod {
        a.command("iptables").unwrap()
    } else {
        node.host_command("iptables")
    };
    let chain = if in_pod { "OUTPUT" } else { "PREROUTING" };
    let rule = [
        "-d",
        "10.96.0.80",
        "-p",
        "tcp",
        "-j",
        "DNAT",
        "--to",
        "169.254.169.254:80",
    ];
    let added = iptables.args(["-t", "nat", "-A", chain]).args(rule).status();
    assert!(added.unwrap().success());
    let recorder = recorder(&node);
    let words = ["--to", "10.96.0.80:80", "--timeout", "700"];
    assert_eq!(dial(&a, &words), counts([("node", 1)]), "nothing stops it yet");
    recorder.settle(node.lab.node()).unwrap();
    let agent = node.agent();
    recorder.take_from_others();
    let dropped = || {
        let got = dial(&a, &words);
        got.keys().all(|outcome| outcome.starts_with("error "))
    };
    assert!(dropped(), "an agent with its guard");
    let _guard = node.closed_guard();
    drop(agent);
    assert!(dropped(), "a guard alone");
    recorder.settle(node.lab.node()).unwrap();
    assert_eq!(recorder.take_from_others(), 0);
}
