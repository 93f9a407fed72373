//! A pod that misbehaves starves neither another pod nor the agent.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{Node, Outcomes, client_binary, dial, node_alone, outcomes};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};

/// The number of measurements with and without each kind of misbehaviour.
const ROUNDS: usize = 2;

/// Starts a program in a pod at the lowest priority. On a node a pod has only its share of the processors, and these
/// tests are about the agent, not about the machine's processors.
fn misbehave(pod: &Pod, script: &str) -> Bad {
    let mut command = pod.command("nice").unwrap();
    command.args(["-n", "19", "python3", "-c", script]);
    Bad(command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap())
}

/// A misbehaving program. Dropping this value kills it.
struct Bad(Child);

impl Bad {
    /// Kills the program, and asserts that it ran until now.
    fn end(mut self) {
        crate::common::end_running(&mut self.0);
    }
}

impl Drop for Bad {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Holds 10,000 connections that send nothing, and replaces those that are closed.
const IDLE: &str = r#"
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
held = []
while True:
    while len(held) < 10000:
        s = socket.socket(); s.settimeout(0.5)
        try: s.connect(("169.254.169.254", 80)); held.append(s)
        except OSError: s.close(); time.sleep(0.01)
    time.sleep(0.2)
    for s in held: s.close()
    held = []
"#;

/// Sends request heads byte by byte on 200 connections.
const DAWDLE: &str = r#"
import socket, time
held = []
while True:
    while len(held) < 200:
        s = socket.socket(); s.settimeout(0.5)
        try: s.connect(("169.254.169.254", 80)); held.append(s)
        except OSError: s.close(); time.sleep(0.01)
    for s in list(held):
        try: s.send(b"G")
        except OSError: held.remove(s); s.close()
    time.sleep(0.05)
"#;

/// Opens connections as fast as possible.
const FLOOD: &str = r#"
import socket, threading
def flood():
    while True:
        s = socket.socket(); s.settimeout(0.5)
        try: s.connect(("169.254.169.254", 80))
        except OSError: pass
        s.close()
for _ in range(4): threading.Thread(target=flood).start()
"#;

/// Sends requests as fast as they are answered.
const HAMMER: &str = r#"
import socket, threading
request = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: x\r\n\r\n"
def hammer():
    while True:
        s = socket.socket(); s.settimeout(1)
        try:
            s.connect(("169.254.169.254", 80))
            while True: s.send(request * 20); s.recv(65536)
        except OSError: pass
        s.close()
for _ in range(8): threading.Thread(target=hammer).start()
"#;

fn memory(agent: &Agent) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .unwrap()
        .count()
}

/// Measures the neighbour's requests. Returns the 99th percentile of those that got their role in milliseconds, and
/// the number of those that did not get it within the second that SDKs wait.
fn slowest(neighbour: &Pod) -> (u64, usize) {
    let words = [
        "--count",
        "400",
        "--threads",
        "2",
        "--pause",
        "2",
        "--time",
        "--timeout",
        "1000",
    ];
    let got: Outcomes = dial(neighbour, &words);
    let mut times = Vec::new();
    let mut failed = 0;
    for (outcome, count) in got {
        let time = outcome
            .strip_prefix("role-neighbour after ")
            .and_then(|rest| rest.strip_suffix(" ms"));
        match time {
            Some(time) => times.extend(std::iter::repeat_n(time.parse::<u64>().unwrap(), count)),
            None => failed += count,
        }
    }
    times.sort_unstable();
    (times[times.len() * 99 / 100], failed)
}

fn scene() -> Option<(Node, Pod, Pod, Agent)> {
    let node = node_alone()?;
    let bad = node.lab.pod(PodSpec::with_role("bad", "role-bad")).unwrap();
    let neighbour = node
        .lab
        .pod(PodSpec::with_role("neighbour", "role-neighbour"))
        .unwrap();
    // A debug build reaches these rates too, and they are above the neighbour's own rate.
    let flags = [
        "--admin-address",
        "10.200.0.1:16925",
        "--max-connection-rate-per-pod",
        "600",
        "--max-request-rate-per-pod",
        "1000",
    ];
    let agent = Agent::start(&node.lab, &node.spec().with(&flags)).unwrap();
    Some((node, bad, neighbour, agent))
}

/// Returns a counter's value. The counter is given with its labels.
fn metric(node: &Node, counter: &str) -> Option<u64> {
    let metrics = node
        .host_command("curl")
        .args(["-s", "http://10.200.0.1:16925/metrics"])
        .output()
        .unwrap();
    let metrics = String::from_utf8(metrics.stdout).unwrap();
    let value = metrics.lines().find_map(|line| line.strip_prefix(counter))?;
    Some(value.trim().parse().unwrap())
}

#[test]
fn a_pod_that_misbehaves_does_not_starve_its_neighbour_and_memory_stays_bounded() {
    let Some((node, bad, neighbour, agent)) = scene() else {
        return;
    };
    // After this load, everything that is allocated only once is allocated.
    slowest(&neighbour);
    let (before, files) = (memory(&agent), descriptors(&agent));
    for (what, script) in [
        ("idle connections", IDLE),
        ("heads byte by byte", DAWDLE),
        ("a flood of connections", FLOOD),
        ("a flood of requests", HAMMER),
    ] {
        // Measurements with and without load alternate, because the machine's own speed varies.
        let (mut quiet, mut loaded, mut most) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            let (time, failed) = slowest(&neighbour);
            assert_eq!(failed, 0, "{what}");
            quiet.push(time);
            let misbehaving = misbehave(&bad, script);
            std::thread::sleep(Duration::from_millis(700));
            let (time, failed) = slowest(&neighbour);
            assert_eq!(failed, 0, "{what}: the neighbour is served all the same");
            loaded.push(time);
            most = most.max(memory(&agent));
            misbehaving.end();
            std::thread::sleep(Duration::from_millis(300));
        }
        quiet.sort_unstable();
        loaded.sort_unstable();
        println!(
            "{what}: slowest in a hundred {} ms quiet, {} ms beside it; {} to {most} KiB",
            quiet[ROUNDS / 2],
            loaded[ROUNDS / 2],
            before
        );
        assert!(most < before + 64 * 1024, "{what}: {before} to {most} KiB");
    }
    for counter in [
        "metaproxy_connections_total{outcome=\"over_limit\"}",
        "metaproxy_refused_connections_total{kind=\"too_fast\",namespace=\"apps\",pod=\"bad\"}",
        "metaproxy_slowed_total{what=\"connection\"}",
        "metaproxy_slowed_total{what=\"request\"}",
    ] {
        assert!(metric(&node, counter).unwrap() > 0, "{counter}");
    }
    crate::common::eventually("its connections are closed", || descriptors(&agent) < files + 50);
}

/// Opens connections, and never closes them, even if they fail.
const HOLD: &str = r#"
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (20000, 20000))
held = []
for _ in range(3000):
    s = socket.socket(); s.settimeout(0.5)
    try: s.connect(("169.254.169.254", 80))
    except OSError: pass
    held.append(s)
print("held", flush=True)
time.sleep(60)
"#;

/// All pods of the node share one accept queue. Refused connections that clients do not close must take no room in
/// it.
#[test]
fn connections_over_the_limit_that_are_never_closed_do_not_delay_a_neighbour() {
    use std::io::BufRead as _;
    let Some((_node, bad, neighbour, _agent)) = scene() else {
        return;
    };
    let mut command = bad.command("python3").unwrap();
    let mut holder = Bad(command.args(["-c", HOLD]).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    std::io::BufReader::new(holder.0.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "held\n");
    assert_eq!(
        dial(&neighbour, &[]),
        crate::common::counts([("role-neighbour", 1)])
    );
    holder.end();
}

/// Opens 12,000 connections: 40 from each of 300 network namespaces that the pod creates. This needs no capability
/// outside of a user namespace.
const FROM_MANY_NAMESPACES: &str = r#"
import ctypes, os, socket
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
def unshare(flags):
    if libc.unshare(flags): raise OSError(ctypes.get_errno(), "unshare")
unshare(CLONE_NEWUSER)
for _ in range(300):
    unshare(CLONE_NEWNET)
    for _ in range(40):
        with socket.socket() as s:
            try: s.connect(("169.254.169.254", 80))
            except OSError: pass
"#;

/// Starts an agent with the lowest connection rate that the flag accepts.
fn slowest_rate(node: &Node) -> Agent {
    let flags = [
        "--admin-address",
        "10.200.0.1:16925",
        "--max-connection-rate-per-pod",
        "512",
    ];
    Agent::start(&node.lab, &node.spec().with(&flags)).unwrap()
}

/// Network namespaces that a pod creates do not increase its rate.
#[test]
fn a_pod_has_one_rate_regardless_of_the_network_namespaces_that_it_creates() {
    let Some(node) = node_alone() else { return };
    let bad = node.lab.pod(PodSpec::with_role("bad", "role-bad")).unwrap();
    let neighbour = node
        .lab
        .pod(PodSpec::with_role("neighbour", "role-neighbour"))
        .unwrap();
    let _agent = slowest_rate(&node);
    let mut command = bad.command("python3").unwrap();
    let start = std::time::Instant::now();
    assert!(
        command
            .args(["-c", FROM_MANY_NAMESPACES])
            .status()
            .unwrap()
            .success()
    );
    // The limit allows a burst of 2,048 connections, and at most twice the rate of 512 per second.
    let most = 2_048 + 2 * 512 * (start.elapsed().as_secs() + 1);
    let counter = "metaproxy_refused_connections_total{kind=\"too_fast\",namespace=\"apps\",pod=\"bad\"}";
    crate::common::eventually("the others are counted", || {
        metric(&node, counter).unwrap_or_default() >= 12_000_u64.saturating_sub(most)
    });
    assert_eq!(
        dial(&neighbour, &[]),
        crate::common::counts([("role-neighbour", 1)])
    );
}

/// Opens 12,000 connections from several cgroups one after the other, as containers would.
const FROM_MANY_CONTAINERS: &str = r#"
import os, socket, sys
for container in sys.argv[1:]:
    with open(container + "/cgroup.procs", "w") as procs: procs.write("0")
    for _ in range(12000 // len(sys.argv[1:])):
        with socket.socket() as s:
            try: s.connect(("169.254.169.254", 80))
            except OSError: pass
"#;

/// The test covers a pod of each QoS class.
#[test]
fn a_pod_has_one_rate_regardless_of_its_number_of_containers() {
    let Some(node) = node_alone() else { return };
    let _agent = slowest_rate(&node);
    let mut classes = std::collections::BTreeSet::new();
    for name in ["one", "two", "three"] {
        let bad = node.lab.pod(PodSpec::with_role(name, "role-bad")).unwrap();
        let pod = bad.cgroup().parent().unwrap();
        let class = pod.parent().unwrap().file_name().unwrap();
        classes.insert(class.to_owned());
        let containers: Vec<_> = (0..4).map(|number| pod.join(format!("c{number}"))).collect();
        for container in &containers {
            std::fs::create_dir(container).unwrap();
        }
        let mut command = bad.command("python3").unwrap();
        let start = std::time::Instant::now();
        command.args(["-c", FROM_MANY_CONTAINERS]).args(&containers);
        assert!(command.status().unwrap().success());
        // The limit allows a burst of 2,048 connections, and at most twice the rate of 512 per second.
        let most = 2_048 + 2 * 512 * (start.elapsed().as_secs() + 1);
        assert!(most < 12_000);
        let counter = format!(
            "metaproxy_refused_connections_total{{kind=\"too_fast\",namespace=\"apps\",pod=\"{name}\"}}"
        );
        crate::common::eventually("the others are counted", || {
            metric(&node, &counter).unwrap_or_default() >= 12_000_u64.saturating_sub(most)
        });
        for container in &containers {
            std::fs::remove_dir(container).unwrap();
        }
    }
    assert_eq!(classes.len(), 3, "{classes:?}");
}

/// Neither memory nor descriptors grow with the number of requests. `METAPROXY_TEST_REQUESTS` sets that number, such
/// as 2000000.
#[test]
fn requests_leave_nothing_behind() {
    let Some(node) = node_alone() else { return };
    let requests: usize = std::env::var_os("METAPROXY_TEST_REQUESTS")
        .map_or(40_000, |count| count.to_string_lossy().parse().unwrap());
    let pods: Vec<Pod> = ["a", "b"]
        .map(|name| node.lab.pod(PodSpec::with_role(name, "role")).unwrap())
        .into();
    let fast = [
        "--max-connection-rate-per-pod",
        "1000000",
        "--max-request-rate-per-pod",
        "1000000",
    ];
    let agent = Agent::start(&node.lab, &node.spec().with(&fast)).unwrap();
    let ask = |each: usize| {
        // Each connection carries a hundred requests, and there is a pause between connections. Otherwise the source
        // ports run out.
        let count = (each / 100).to_string();
        let words = [
            "dial",
            "--count",
            &count,
            "--keep",
            "100",
            "--threads",
            "4",
            "--pause",
            "1",
        ];
        let start = |pod: &Pod| {
            let mut command: Command = pod.command(client_binary()).unwrap();
            command.args(words).stdout(Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<Child> = pods.iter().map(start).collect();
        for child in children {
            let got = outcomes(child);
            assert_eq!(got.keys().collect::<Vec<_>>(), ["role"], "{got:?}");
        }
    };
    ask(requests / 8);
    let (memory_before, files_before) = (memory(&agent), descriptors(&agent));
    ask(requests / 2);
    let (memory_after, files_after) = (memory(&agent), descriptors(&agent));
    println!(
        "{requests} requests: {memory_before} to {memory_after} KiB, {files_before} to {files_after} descriptors"
    );
    assert!(memory_after < memory_before + 4 * 1024);
    assert!(files_after <= files_before + 2);
}
