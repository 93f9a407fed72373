//! NAT rules of the node that redirect the listener's port, as portmap and kube-proxy write them.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::doctor::examined;
use crate::common::http::LIST;
use crate::common::identity::{REFUSED, assert_only};
use crate::common::{
    Node, UNREACHABLE, agent_binary, counts, dial, eventually, eventually_within, node, outcomes, start_dial,
};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};

/// The address of the listener to which pods' IPv4 connections go.
const NODE: &str = "10.200.0.1";

/// The maximum time for a failed check, its confirmation and a move on a busy machine.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(20);

/// Answers every request with the name of a role of its own.
const ATTACKER: &str = r#"
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self):
        body = b"role-attacker"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_PUT = answer
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler)
print("listening", flush=True)
server.serve_forever()
"#;

/// A pod that takes over the listener's port.
struct Attacker {
    pod: Pod,
    server: Child,
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

impl Attacker {
    fn new(node: &Node) -> Self {
        use std::io::{BufRead as _, BufReader};
        let pod = node.lab.pod(PodSpec::without_role("attacker")).unwrap();
        let mut command = pod.command("python3").unwrap();
        command.args(["-c", ATTACKER]).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(server.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "listening\n");
        Self { pod, server }
    }

    fn target(&self) -> String {
        format!("{}:8080", self.pod.ip())
    }

    /// Writes the attacker's manifest with a host port.
    fn declare(&self, node: &Node, port: u16) {
        declare(node, "attacker", self.pod.uid(), port);
    }
}

fn declare(node: &Node, name: &str, uid: &str, port: u16) {
    let manifest = serde_json::json!({
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "apps", "uid": uid },
        "spec": { "containers": [{ "name": "c", "ports": [{ "containerPort": 8080, "hostPort": port }] }] },
        "status": { "phase": "Running" },
    });
    node.lab
        .manifest(&format!("{name}.json"), &manifest.to_string())
        .unwrap();
}

fn iptables(node: &Node, words: &str) {
    let mut command = node.host_command("iptables");
    let output = command
        .args(["-w", "-t", "nat"])
        .args(words.split(' '))
        .output()
        .unwrap();
    assert!(output.status.success(), "iptables {words}: {output:?}");
}

/// Adds the rules with which the CNI plugin portmap implements a host port
/// (plugins/meta/portmap/portmap_iptables.go).
fn portmap(node: &Node, port: u16, to: &str) {
    for words in [
        "-N CNI-HOSTPORT-DNAT",
        "-N CNI-DN-attacker",
        "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
        &format!("-A CNI-DN-attacker -p tcp --dport {port} -j DNAT --to-destination {to}"),
        &format!("-A CNI-HOSTPORT-DNAT -p tcp --dport {port} -j CNI-DN-attacker"),
    ] {
        iptables(node, words);
    }
}

/// Adds the rules with which kube-proxy implements a Service with `externalIPs: [10.200.0.1]`
/// (pkg/proxy/iptables/proxier.go).
fn external_ip(node: &Node, port: u16, to: &str) {
    for words in [
        "-N KUBE-MARK-MASQ",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-N KUBE-POSTROUTING",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-N KUBE-SEP-ATTACKER",
        &format!("-A KUBE-SEP-ATTACKER -p tcp -j DNAT --to-destination {to}"),
        "-N KUBE-EXT-ATTACKER",
        "-A KUBE-EXT-ATTACKER -j KUBE-MARK-MASQ",
        "-A KUBE-EXT-ATTACKER -j KUBE-SEP-ATTACKER",
        "-N KUBE-SERVICES",
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        &format!("-A KUBE-SERVICES -d {NODE}/32 -p tcp --dport {port} -j KUBE-EXT-ATTACKER"),
    ] {
        iptables(node, words);
    }
}

fn port(agent: &Agent) -> u16 {
    agent.listeners().unwrap()[0].port()
}

/// Starts a client that requests the list again and again for this number of seconds, each time on a new connection.
fn ask(pod: &Pod, seconds: &str) -> Child {
    let words = [
        "--seconds",
        seconds,
        "--threads",
        "2",
        "--pause",
        "5",
        "--timeout",
        "1000",
    ];
    start_dial(pod, &[&words[..], &["--path", LIST]].concat())
}

fn is_ready(node: &Node) -> (bool, String) {
    let output = Command::new(agent_binary())
        .args(["probe", "ready", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Returns how often the listener's check has begun to fail.
fn troubles(node: &Node) -> u64 {
    let text = node.asked("/metrics");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("metaproxy_part_troubles_total{part=\"listener\"} "))
        .unwrap_or_else(|| panic!("no metric of the listener: {text}"));
    line.parse().unwrap()
}

/// Returns the outcomes that a pod's requests may have while a rule redirects the port: its own role, the attacker's
/// answer, or a refused connection.
fn allowed() -> Vec<&'static str> {
    [&REFUSED[..], &[UNREACHABLE, "role-victim", "role-attacker"]].concat()
}

#[test]
fn a_pod_that_declares_the_listeners_port_is_named_and_the_listener_moves_away() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let attacker = Attacker::new(&node);
    let agent = node.agent();
    let claimed = port(&agent);
    assert_eq!(troubles(&node), 0);
    let asking = ask(&victim, "4");
    std::thread::sleep(Duration::from_millis(500));
    portmap(&node, claimed, &attacker.target());
    let start = Instant::now();
    attacker.declare(&node, claimed);
    let moved = agent
        .wait_for("the listener has moved to another port: pod apps/attacker declares hostPort")
        .unwrap();
    let took = start.elapsed();
    assert!(
        moved.contains(&format!("from={claimed}")) && !moved.contains(&format!(":{claimed},")),
        "{moved}"
    );
    let after = dial(&victim, &["--count", "500", "--threads", "2"]);
    assert_eq!(after, counts([("role-victim", 500)]));
    let got = outcomes(asking);
    assert_only(&got, &allowed(), "the victim");
    println!("moved {took:?} after the manifest; the victim got {got:?}");
    assert_eq!(troubles(&node), 1, "readiness was lost");
    assert!(is_ready(&node).0, "and came back: {}", agent.logged());
    assert_eq!(node.imds.seen_from_pods(), []);
}

#[test]
fn a_service_with_the_nodes_external_ip_is_detected_by_the_self_check_and_the_listener_moves_away() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let attacker = Attacker::new(&node);
    let mut agent = node.agent();
    let claimed = port(&agent);
    let asking = ask(&victim, "12");
    std::thread::sleep(Duration::from_millis(500));
    let start = Instant::now();
    external_ip(&node, claimed, &attacker.target());
    agent
        .wait_for("the listener has moved to another port: connections to the listener 10.200.0.1:")
        .unwrap();
    let took = start.elapsed();
    let after = dial(&victim, &["--count", "500", "--threads", "2"]);
    assert_eq!(after, counts([("role-victim", 500)]));
    let got = outcomes(asking);
    assert_only(&got, &allowed(), "the victim");
    println!("moved {took:?} after the rule; the victim got {got:?}");
    assert!(
        got.get("role-attacker").is_some_and(|answers| *answers > 0),
        "the rule works as on a node: {got:?}"
    );
    // The program at the victim's socket has seen that another program answered.
    let line = agent
        .wait_for("connections of pod apps/victim to the metadata service were not served")
        .unwrap();
    assert!(line.contains("answered_elsewhere"), "{line}");
    assert_eq!(troubles(&node), 1, "readiness was lost");
    assert!(is_ready(&node).0, "and came back: {}", agent.logged());
    assert_eq!(node.imds.seen_from_pods(), []);
    // The agent's own checks are not counted as refused connections.
    assert_eq!(node.kernel_count("no_option"), 0);
    assert!(agent.stop().unwrap().success());
    agent.wait_for("refused=0").unwrap();
    node.assert_nothing_loaded();
}

#[test]
fn at_a_fixed_port_pods_are_refused_while_a_rule_redirects_it_and_served_again_afterwards() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let attacker = Attacker::new(&node);
    let agent = Agent::start(&node.lab, &node.spec().with(&["--listen-port", "18181"])).unwrap();
    assert_eq!(dial(&victim, &[]), counts([("role-victim", 1)]));

    attacker.declare(&node, 18_181);
    let named = "not ready: listener: --listen-port 18181: pod apps/attacker declares hostPort 18181";
    agent.wait_for(named).unwrap();
    let (ready, report) = is_ready(&node);
    assert!(!ready && report.contains("pod apps/attacker"), "{report}");
    assert_eq!(
        dial(&victim, &[]),
        counts([("role-victim", 1)]),
        "nothing takes connections yet"
    );

    portmap(&node, 18_181, &attacker.target());
    eventually_within(
        NOTICE_TIMEOUT,
        "connections that would go elsewhere are refused",
        || dial(&victim, &[]) == counts([(UNREACHABLE, 1)]),
    );
    let (_, report) = is_ready(&node);
    assert!(
        report.contains("pod apps/attacker declares hostPort 18181") && report.contains("--listen-port 0"),
        "{report}"
    );
    examined(&node, &[]).has(
        "ports: problem: --listen-port 18181: pod apps/attacker",
        "host-ports",
    );
    // Later checks do not change that.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(dial(&victim, &["--count", "20"]), counts([(UNREACHABLE, 20)]));

    // If no pod declares the port, the agent can only report that there is a rule.
    attacker.declare(&node, 18_182);
    eventually_within(NOTICE_TIMEOUT, "a rule is reported", || {
        is_ready(&node).1.contains("a NAT rule of this node")
    });
    iptables(&node, "-F CNI-HOSTPORT-DNAT");
    eventually_within(NOTICE_TIMEOUT, "it is ready again", || is_ready(&node).0);
    assert_eq!(dial(&victim, &["--count", "200"]), counts([("role-victim", 200)]));
    agent.wait_for_nth(" ready ", 2).unwrap();
}

#[test]
fn no_request_fails_during_five_moves() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let mut claimed = port(&agent);
    let asking = start_dial(
        &a,
        &[
            "--seconds",
            "15",
            "--threads",
            "4",
            "--pause",
            "5",
            "--timeout",
            "5000",
        ],
    );
    let keeping = start_dial(&a, &["--seconds", "15", "--pause", "5", "--keep", "50"]);
    for number in 1..=5 {
        std::thread::sleep(Duration::from_millis(1500));
        let name = format!("claims-{number}");
        declare(&node, &name, &name, claimed);
        let line = agent
            .wait_for_nth("the listener has moved to another port", number)
            .unwrap();
        assert!(
            line.contains(&format!("pod apps/{name} declares hostPort {claimed}")),
            "{line}"
        );
        let (_, listen) = line.split_once(&format!("listen={NODE}:")).unwrap();
        let next = listen.split([',', ' ', ':']).next().unwrap();
        let next: u16 = next.parse().unwrap();
        assert_ne!(next, claimed);
        claimed = next;
    }
    let (asked, kept) = (outcomes(asking), outcomes(keeping));
    println!("{asked:?}, and on few connections {kept:?}");
    assert_eq!(asked.keys().collect::<Vec<_>>(), ["role-a"], "{asked:?}");
    assert_eq!(kept.keys().collect::<Vec<_>>(), ["role-a"], "{kept:?}");
    assert!(asked["role-a"] >= 2_000, "{asked:?}");
    let (ready, report) = is_ready(&node);
    assert!(ready, "{report}");
    let status = Command::new(agent_binary())
        .args(["status", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(&format!("{NODE}:{claimed}")), "{status}");
}

/// The agent runs as in a DaemonSet, where the programs see its own connections as those of a pod.
#[test]
fn an_agent_in_a_pod_checks_its_listeners_and_moves_too() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let home = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::without_role("metaproxy")
        })
        .unwrap();
    let mut spec = node.spec();
    spec.cgroup = Some(home.cgroup().to_owned());
    // This rule changes the port of every connection, including those of the checks.
    iptables(&node, "-A POSTROUTING -j MASQUERADE --random-fully");
    let mut agent = Agent::start(&node.lab, &spec).unwrap();
    let claimed = port(&agent);
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(troubles(&node), 0, "{}", agent.logged());
    external_ip(&node, claimed, "10.244.250.2:8080");
    agent.wait_for("the listener has moved to another port").unwrap();
    assert_eq!(dial(&victim, &["--count", "100"]), counts([("role-victim", 100)]));
    assert!(agent.stop().unwrap().success());
    agent.wait_for("refused=0").unwrap();
}

/// The agent is stopped for longer than the time limit of a check.
#[test]
fn an_agent_that_was_stopped_for_a_while_reports_no_rule() {
    let Some(node) = node() else { return };
    let agent = node.agent();
    let claimed = port(&agent);
    for _ in 0..6 {
        agent.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        agent.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(700));
    }
    assert!(is_ready(&node).0);
    assert_eq!(troubles(&node), 0, "{}", agent.logged());
    let status = Command::new(agent_binary())
        .args(["status", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(status.contains(&format!("{NODE}:{claimed}")), "{status}");
}

/// A node's address changes when DHCP assigns another one.
#[test]
fn a_listener_whose_address_is_removed_from_the_node_is_not_ready_and_moves_to_the_new_address() {
    let Some(node) = node() else { return };
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let agent = node.agent();
    let served = || dial(&victim, &["--count", "100", "--threads", "2"]);
    // The agent reaches STS from the same address, so the session is obtained before the address changes.
    assert_eq!(served(), counts([("role-victim", 100)]));
    let is_at = |ip: &str| {
        let found = agent.listeners().unwrap();
        found.iter().any(|listener| listener.ip().to_string() == ip)
    };
    assert!(is_at("10.200.0.1"), "{:?}", agent.listeners());
    let ip = |words: &str| {
        let output = node.host_command("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {output:?}");
    };
    ip("address delete 10.200.0.1/24 dev up0");
    ip("address add 10.200.0.9/24 dev up0");
    agent
        .wait_for("not ready: listener: the listener 10.200.0.1:")
        .unwrap();
    let moved = agent.wait_for("the listener has moved").unwrap();
    assert!(!moved.contains("listen=10.200.0.1:"), "{moved}");
    eventually("it is ready again", || is_ready(&node).0);
    assert_eq!(served(), counts([("role-victim", 100)]));
}
