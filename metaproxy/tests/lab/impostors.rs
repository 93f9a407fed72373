//! Clients that pretend to be another pod get nothing.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::identity::{REFUSED, assert_only, twins, v4_listener};
use crate::common::{Outcomes, client_binary, counts, dial, node, outcomes, start_dial};
use metaproxy_lab::pod::{Pod, PodSpec, command_in};

#[test]
fn a_process_that_reuses_the_4_tuple_of_a_pod_gets_nothing() {
    let Some(node) = node() else { return };
    let victim = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::with_role("victim", "role-victim")
        })
        .unwrap();
    let mut agent = node.agent();
    let listener = v4_listener(&agent);
    crate::common::eventually("the victim is listed", || {
        dial(&victim, &[]) == counts([("role-victim", 1)])
    });
    let mut tried = 0;
    for port in 21_000..21_200 {
        let source = format!("10.200.0.1:{port}");
        assert_eq!(
            dial(&victim, &["--source", &source]),
            counts([("role-victim", 1)]),
            "{source}"
        );
        // A process of the node, outside of the pods' cgroup, uses the same addresses and ports.
        let got = node.host_dial(&["--to", &listener, "--source", &source]);
        assert_only(&got, &REFUSED, "a process of the node");
        tried += 1;
    }
    assert_eq!(tried, 200);
    assert!(agent.stop().unwrap().success());
    agent.wait_for("refused=200").unwrap();
}

/// Both pods use one address and port at the same time, while the agent is stopped and cannot accept. Each connection
/// that is established gets the role of the pod that made it.
#[test]
fn two_pods_that_use_one_4_tuple_while_connections_wait_get_no_role_but_their_own() {
    let Some(node) = node() else { return };
    let (victim, twin) = twins(&node);
    let agent = node.agent();
    let source = format!("{}:25000", victim.ip());
    for _ in 0..5 {
        agent.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
        let words = [
            "--source",
            &source,
            "--sweep",
            "--seconds",
            "1",
            "--threads",
            "2",
            "--timeout",
            "20",
        ];
        let before = start_dial(&twin, &words);
        let asking = start_dial(
            &victim,
            &[
                "--source",
                &source,
                "--sweep",
                "--count",
                "40",
                "--threads",
                "40",
                "--timeout",
                "4000",
            ],
        );
        std::thread::sleep(Duration::from_millis(300));
        let claims = outcomes(before);
        agent.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
        let got = outcomes(asking);
        assert_only(&claims, &[&REFUSED[..], &["role-twin"]].concat(), "the twin");
        assert_only(&got, &[&REFUSED[..], &["role-victim"]].concat(), "the victim");
        assert!(
            got.get("role-victim").is_some_and(|served| *served > 20),
            "{got:?}"
        );
    }
}

/// `IP_TRANSPARENT` lets a pod with CAP_NET_RAW use any address. The listener's answers go to the victim, so such a
/// connection is never established.
#[test]
fn sockets_bound_to_a_victims_address_never_get_or_give_a_wrong_identity_in_100_000_requests() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "role-thief")).unwrap();
    // Without this filter the thief's packets arrive, as on a node that does not filter by source.
    for device in ["all", &format!("pod{}", thief.number())] {
        node.lab
            .node()
            .sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")
            .unwrap();
    }
    let mut agent = node.agent();
    let source = format!("{}:23000", victim.ip());
    let mut spray = start_dial(
        &thief,
        &[
            "--source",
            &source,
            "--sweep",
            "--transparent",
            "--seconds",
            "600",
            "--threads",
            "8",
            "--timeout",
            "20",
        ],
    );
    let got = dial(
        &victim,
        &[
            "--source",
            &source,
            "--sweep",
            "--count",
            "100000",
            "--threads",
            "4",
            "--timeout",
            "500",
        ],
    );
    crate::common::end_running(&mut spray);
    assert_only(&got, &[&REFUSED[..], &["role-victim"]].concat(), "the victim");
    let served = got.get("role-victim").copied().unwrap_or_default();
    assert!(served > 90_000, "served {served} of 100,000: {got:?}");
    let redirected = node.kernel_count("redirected");
    assert!(redirected > 101_000, "the thief did try: {redirected}");
    assert!(agent.stop().unwrap().success());
    println!(
        "{redirected} redirected; {}; {got:?}",
        agent.wait_for("served=").unwrap()
    );
}

/// A container creates a cgroup within its own, and names it after another pod. A process in it still gets its own
/// pod's role.
#[test]
fn a_nested_cgroup_named_after_another_pod_changes_nothing() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "role-thief")).unwrap();
    let _agent = node.agent();
    let nested = thief.cgroup().join(format!("pod{}/c0ffee", victim.uid()));
    std::fs::create_dir_all(&nested).unwrap();
    let mut command = command_in(&client_binary(), Some(&nested), thief.netns().unwrap().file()).unwrap();
    let child = command.arg("dial").stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(outcomes(child), counts([("role-thief", 1)]));
}

#[test]
fn a_pod_is_identified_from_an_address_that_its_manifest_does_not_name() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let netns = a.netns().unwrap();
    netns.add_address("lo", "10.244.99.99/32").unwrap();
    let back = ["route", "add", "10.244.99.99/32", "via", "10.244.1.2"];
    assert!(node.host_command("ip").args(back).status().unwrap().success());
    let _agent = node.agent();
    assert_eq!(dial(&a, &["--source", "10.244.99.99:0"]), counts([("role-a", 1)]));
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}

/// The attack needs no capability: any process may bind a socket to any IPv6 address to which no route leads
/// elsewhere.
#[test]
fn an_ipv6_socket_bound_to_a_victims_address_gets_nothing() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "role-thief")).unwrap();
    let _agent = node.agent();
    let source = format!("[fd00:244:0:{:x}::2]:26000", victim.number());
    let imds = ["--to", crate::common::IMDS6, "--source", &source, "--sweep"];
    let mut spray = start_dial(
        &thief,
        &[
            &imds[..],
            &[
                "--freebind",
                "--seconds",
                "600",
                "--threads",
                "8",
                "--timeout",
                "20",
            ],
        ]
        .concat(),
    );
    let got = dial(
        &victim,
        &[
            &imds[..],
            &["--count", "5000", "--threads", "4", "--timeout", "500"],
        ]
        .concat(),
    );
    crate::common::end_running(&mut spray);
    assert_only(&got, &[&REFUSED[..], &["role-victim"]].concat(), "the victim");
    assert!(
        got.get("role-victim").is_some_and(|served| *served > 4_500),
        "{got:?}"
    );
}

/// The pod still holds its socket, but the agent has answered and closed the connection. A process outside of the
/// pods' cgroup with the same address and port must not be identified as the pod.
#[test]
fn an_identity_belongs_to_one_connection_and_not_to_its_address_and_port() {
    use std::io::BufRead as _;
    const HOLD: &str = r#"
import socket, sys
held = socket.socket()
held.bind((sys.argv[1], 27000))
held.connect(("169.254.169.254", 80))
held.sendall(b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
answer = b""
while data := held.recv(4096):
    answer += data
print(answer.decode().splitlines()[-1], flush=True)
sys.stdin.read()
"#;
    let Some(node) = node() else { return };
    let (victim, twin) = twins(&node);
    let mut agent = node.agent();
    let listener = v4_listener(&agent);
    let mut python = victim.command("python3").unwrap();
    let ip = victim.ip().to_string();
    let mut holder = python
        .args(["-c", HOLD, &ip])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line.trim(), "role-victim");
    let route = format!("route replace {ip}/32 dev pod{}", twin.number());
    assert!(
        node.host_command("ip")
            .args(route.split(' '))
            .status()
            .unwrap()
            .success()
    );
    let source = format!("{ip}:27000");
    for _ in 0..5 {
        let netns = twin.netns().unwrap().file();
        let mut outsider = command_in(&client_binary(), Some(&node.lab.host_cgroup()), netns).unwrap();
        let dialled = outsider.args([
            "dial",
            "--to",
            &listener,
            "--source",
            &source,
            "--timeout",
            "1000",
        ]);
        let got = outcomes(dialled.stdout(Stdio::piped()).spawn().unwrap());
        assert_only(&got, &REFUSED, "a process outside the pods' cgroup");
    }
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success(), "it held its socket to the end");
    assert!(agent.stop().unwrap().success());
    let summary = agent.wait_for("served=").unwrap();
    assert!(
        !summary.contains("refused=0"),
        "the outsider did come through to the agent: {summary}"
    );
}

#[test]
fn a_listener_that_is_dialled_directly_serves_pods_only() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let listener = v4_listener(&agent);
    assert_eq!(dial(&a, &["--to", &listener]), counts([("role-a", 1)]));
    let is_refused = |got: &Outcomes| {
        let refused = |outcome: &String| outcome.starts_with("error ") || outcome == "no answer";
        got.keys().all(refused)
    };
    let host = node.host_dial(&["--to", &listener]);
    assert!(is_refused(&host), "a process of the node: {host:?}");
    // The client is on another node of the same network, so this kernel does not know its process.
    let mut command = command_in(&client_binary(), None, node.lab.aws().file()).unwrap();
    let other = outcomes(
        command
            .args(["dial", "--to", &listener])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    assert!(is_refused(&other), "another node: {other:?}");
}

/// A session token is valid for its own pod only.
#[test]
fn another_pods_session_token_is_refused() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "role-thief")).unwrap();
    let _agent = node.agent();
    let curl = |pod: &Pod, words: &[&str]| {
        let output = pod
            .command(Path::new("curl"))
            .unwrap()
            .args(["-s", "-m", "3", "-w", " %{http_code}"])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
    let issued = curl(
        &a,
        &["-X", "PUT", "-H", ttl, "http://169.254.169.254/latest/api/token"],
    );
    let token = issued.strip_suffix(" 200").unwrap();
    let shown = format!("X-aws-ec2-metadata-token: {token}");
    let list = "http://169.254.169.254/latest/meta-data/iam/security-credentials/";
    assert_eq!(curl(&a, &["-H", &shown, list]), "role-a 200");
    assert!(curl(&thief, &["-H", &shown, list]).ends_with(" 401"));
}
