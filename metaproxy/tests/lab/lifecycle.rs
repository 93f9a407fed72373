//! Start and end of an agent. They leave nothing behind.

use std::fs;
use std::time::{Duration, Instant};

use crate::common::{
    Outcomes, agent_binary, counts, dial, eventually, node, node_alone, outcomes, start_dial,
};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::{kill_all_in, remove_cgroup};
use nix::sys::signal::Signal;
use rstest::rstest;

#[test]
fn exactly_the_expected_objects_are_loaded_and_they_are_unloaded_with_the_process() {
    let Some(node) = node() else { return };
    node.assert_nothing_loaded();
    let agent = node.agent();
    let loaded = node.loaded();
    for (kind, count) in [("program", 10), ("link", 9), ("map", 16)] {
        assert_eq!(
            loaded.iter().filter(|name| name.starts_with(kind)).count(),
            count,
            "{loaded:?}"
        );
    }
    agent.signal(Signal::SIGKILL).unwrap();
    drop(agent);
    node.assert_nothing_loaded();
}

#[test]
fn the_agent_attaches_to_a_pods_cgroup_that_is_created_late_or_again() {
    let Some(node) = node_alone() else { return };
    let kubepods = node.lab.kubepods();
    remove_cgroup(&kubepods);
    let agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
    agent.wait_for("waiting for the pods' cgroup").unwrap();
    for round in 1..=3 {
        fs::create_dir_all(kubepods.join("burstable")).unwrap();
        let made = Instant::now();
        // The test does not wait for `ready`. If the cgroup is created again before readiness is computed, readiness
        // does not change, and nothing is logged.
        agent
            .wait_for_nth("INFO attached to the pods' cgroup", round)
            .unwrap();
        assert!(
            made.elapsed() < Duration::from_secs(1),
            "intercepted again within a second: {:?}",
            made.elapsed()
        );
        let a = node
            .lab
            .pod(PodSpec::with_role("a", &format!("role-{round}")))
            .unwrap();
        eventually("the pod is served", || {
            dial(&a, &[]) == counts([(format!("role-{round}").as_str(), 1)])
        });
        drop(a);
        kill_all_in(&kubepods);
        remove_cgroup(&kubepods);
        agent
            .wait_for_nth("WARN the pods' cgroup was removed", round)
            .unwrap();
    }
}

#[test]
fn a_fixed_port_that_is_taken_is_an_error_that_names_its_holder_and_nothing_is_attached() {
    let Some(node) = node() else { return };
    let taken = node
        .lab
        .node()
        .run(|| std::net::TcpListener::bind("10.200.0.1:18181").unwrap())
        .unwrap();
    let mut agent = Agent::spawn(&node.lab, &node.spec().with(&["--listen-port", "18181"])).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(1));
    let said = agent.logged();
    let holder = format!("(pid {})", std::process::id());
    assert!(
        said.contains("--listen-port 18181: 10.200.0.1:18181 is already taken by") && said.contains(&holder),
        "{said}"
    );
    node.assert_nothing_loaded();
    drop(taken);
    let agent = Agent::start(&node.lab, &node.spec().with(&["--listen-port", "18181"])).unwrap();
    assert!(
        agent
            .listeners()
            .unwrap()
            .iter()
            .all(|listener| listener.port() == 18_181)
    );
}

#[test]
fn a_free_port_is_outside_the_ephemeral_and_nodeport_ranges_and_no_pods_host_port() {
    let Some(node) = node() else { return };
    // Nearly all ports are taken. Only 10240 to 10244 are left, and a pod has all of these but one as host ports.
    node.lab
        .node()
        .sysctl("net/ipv4/ip_local_port_range", "10245 65535")
        .unwrap();
    let ports: Vec<_> = (10_240..10_244)
        .map(|port| format!("{{containerPort: 80, hostPort: {port}}}"))
        .collect();
    node.lab
        .manifest(
            "ports.yaml",
            &format!(
                "kind: Pod\nmetadata: {{name: ports, uid: ports}}\nspec: {{containers: [{{name: c, ports: [{}]}}]}}\n",
                ports.join(", ")
            ),
        )
        .unwrap();
    let agent = node.agent();
    assert!(
        agent
            .listeners()
            .unwrap()
            .iter()
            .all(|listener| listener.port() == 10_244),
        "{}",
        agent.logged()
    );
    // A second agent finds a free port all the same.
    let second = node.agent();
    let port = second.listeners().unwrap()[0].port();
    assert!((1_024..10_240).contains(&port), "{port}");
}

#[test]
fn the_older_of_two_agents_serves_until_it_ends_and_no_request_is_lost() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut agents = vec![node.agent()];
    let load = start_dial(&a, &["--seconds", "14", "--threads", "2", "--keep", "3"]);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        agents.push(node.agent());
        std::thread::sleep(Duration::from_millis(300));
        // The older agent ends. The newer one has served no request so far.
        let mut older = agents.remove(0);
        assert!(older.stop().unwrap().success());
        assert!(
            !older.wait_for("served=").unwrap().contains("served=0 "),
            "{}",
            older.logged()
        );
    }
    // In the reverse order the newer agent ends, and has served no request.
    agents.push(node.agent());
    let mut younger = agents.remove(1);
    assert!(younger.stop().unwrap().success());
    younger.wait_for("served=0 ").unwrap();
    let got = outcomes(load);
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        ["role-a"],
        "none failed, none went to the node: {got:?}"
    );
    assert_eq!(node.imds.seen_from_pods(), []);
}

#[test]
fn sigterm_under_load_ends_the_agent_within_seconds_without_a_failed_request() {
    let Some(node) = node_alone() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut agent = node.agent();
    let load = start_dial(&a, &["--seconds", "3", "--threads", "8"]);
    std::thread::sleep(Duration::from_millis(1000));
    let start = Instant::now();
    assert!(agent.stop().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    let got = outcomes(load);
    // The agent's guard refuses connections that are not redirected any more. When the guard has ended too, the
    // node's own service answers.
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        ["error ENETUNREACH: Network is unreachable", "node", "role-a"],
        "{got:?}"
    );
    node.assert_nothing_loaded();
}

/// Sends one request for each line that it reads, all on one connection.
const ASKING: &str = r#"
import http.client, sys
connection = http.client.HTTPConnection("169.254.169.254", 80)
for line in iter(sys.stdin.readline, ""):
    connection.request("GET", "/nowhere")
    answer = connection.getresponse()
    answer.read()
    print(answer.status, answer.getheader("connection", "kept"), flush=True)
"#;

/// Idle connections do not delay the agent's end. A connection in use ends after its next answer.
#[rstest]
#[case::idle(false)]
#[case::in_use(true)]
fn kept_connections_end_with_the_agent(#[case] in_use: bool) {
    use std::io::{BufRead as _, Read as _, Write as _};
    let Some(node) = node() else { return };
    let mut agent = node.agent();
    let listed = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::with_role("a", "role-a")
        })
        .unwrap();
    eventually("it is listed", || dial(&listed, &[]) == counts([("role-a", 1)]));
    // A process of the pod holds one connection, and sends a request for each line that it reads.
    let mut client = listed
        .command("python3")
        .unwrap()
        .args(["-c", ASKING])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut asked = client.stdin.take().unwrap();
    asked.write_all(b"go\n").unwrap();
    let mut answers = std::io::BufReader::new(client.stdout.take().unwrap());
    let mut said = String::new();
    answers.read_line(&mut said).unwrap();
    let start = Instant::now();
    agent.signal(Signal::SIGTERM).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    if in_use {
        asked.write_all(b"go\n").unwrap();
    }
    assert!(agent.wait().unwrap().success());
    let took = start.elapsed();
    drop(asked);
    answers.read_to_string(&mut said).unwrap();
    assert!(client.wait().unwrap().success(), "{said}");
    assert_eq!(
        said.matches("404").count(),
        if in_use { 2 } else { 1 },
        "each was answered: {said}"
    );
    assert_eq!(said.contains("404 close"), in_use, "{said}");
    assert!(took < Duration::from_secs(if in_use { 2 } else { 6 }), "{took:?}");
}

/// Wrong flags are reported in a sentence before anything is attached.
#[rstest]
#[case(&["--listen-address", "192.0.2.9"], 1, "--listen-address 192.0.2.9: not an address of this node")]
#[case(&["--cgroup-root", "/tmp"], 1, "--cgroup-root /tmp: not a directory of a cgroup v2 mount")]
#[case(&["--no-such-flag"], 64, "unexpected argument '--no-such-flag'")]
#[case(&["--kubeconfig", "/x"], 64, "cannot be used with")]
#[case(&["--base-role-arn", "arn:aws:iam::1:role/"], 64, "cannot be used multiple times")]
#[case(&["--default-role", "arn:aws:iam::1:role/x"], 64, "the account of an ARN is 12 digits")]
#[case(&["--session-duration", "90m"], 64, "role chaining")]
fn bad_usage_is_reported_and_nothing_is_attached(
    #[case] flags: &[&str],
    #[case] code: i32,
    #[case] sentence: &str,
) {
    let Some(node) = node() else { return };
    let mut agent = Agent::spawn(&node.lab, &node.spec().with(flags)).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(code), "{}", agent.logged());
    assert!(agent.logged().contains(sentence), "{}", agent.logged());
    node.assert_nothing_loaded();
}

#[test]
fn a_missing_directory_of_manifests_is_reported() {
    let output = std::process::Command::new(agent_binary())
        .args(["run", "--manifests", "/nonexistent/pods", "--region", "us-east-1"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("--manifests /nonexistent/pods: No such file"),
        "{said}"
    );
}

#[test]
fn invalid_manifests_are_reported_and_the_other_pods_are_served() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let twin = node.lab.pod(PodSpec::with_role("twin", "role-twin")).unwrap();
    let malformed = node
        .lab
        .pod(PodSpec::with_role("malformed", "arn:aws:iam::1:role/x"))
        .unwrap();
    node.lab
        .manifest(
            "nouid.yaml",
            "# one\nkind: Pod\nmetadata: {name: nouid, namespace: apps}\n",
        )
        .unwrap();
    node.lab
        .manifest("broken.yaml", "kind: Pod\nmetadata:\n  name: [x\n")
        .unwrap();
    let text = format!(
        "kind: Pod\nmetadata: {{name: impostor, namespace: apps, uid: {}}}\n",
        twin.uid()
    );
    node.lab.manifest("impostor.yaml", &text).unwrap();
    let agent = node.agent();
    agent
        .wait_for("nouid.yaml:1: pod apps/nouid has no metadata.uid")
        .unwrap();
    agent.wait_for("broken.yaml:4: ").unwrap();
    let line = agent.wait_for(&format!("UID {} is that of", twin.uid())).unwrap();
    assert!(
        line.contains("apps/twin") && line.contains("apps/impostor"),
        "{line}"
    );
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    assert_eq!(dial(&twin, &[]), counts([("status 404", 1)]), "neither of two");
    let document: Outcomes = dial(
        &malformed,
        &["--path", "/latest/meta-data/iam/security-credentials/x"],
    );
    let (document, _) = document.first_key_value().unwrap();
    assert!(
        document.contains("AssumeRoleUnauthorizedAccess") && document.contains("12 digits"),
        "{document}"
    );

    // If a valid file becomes invalid, its pods stay known. When the file is valid again, its content applies without
    // a restart.
    node.lab
        .manifest("a.json", "{\"kind\": \"Pod\",\n\"metadata\": }")
        .unwrap();
    agent.wait_for("a.json:2: ").unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    a.write_manifest(&[("iam.amazonaws.com/role".to_owned(), "role-new".to_owned())])
        .unwrap();
    eventually("the mended file counts", || {
        dial(&a, &[]) == counts([("role-new", 1)])
    });
    fs::remove_file(node.lab.manifests().join("impostor.yaml")).unwrap();
    eventually("the UID is one pod's again", || {
        dial(&twin, &[]) == counts([("role-twin", 1)])
    });
}
