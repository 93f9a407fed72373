//! Tests of an API server that loses its history, or that does not answer.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::api::{agent, kubepods, readiness};
use crate::common::{Outcomes, dial, outcomes, start_dial};
use crate::kit::{Cluster, MadeByHand, kubectl, node_asks, within};
use crate::tools::{agent_process, process};

const ROLE: &str = "iam.amazonaws.com/role";

/// Returns how long the API server is away: 25 s, or two minutes with METAPROXY_TEST_OUTAGE=120.
fn outage() -> Duration {
    let seconds = std::env::var_os("METAPROXY_TEST_OUTAGE").and_then(|text| text.to_str()?.parse().ok());
    Duration::from_secs(seconds.unwrap_or(25))
}

/// A process that is stopped (SIGSTOP). Dropping this value continues it.
struct Stopped(Pid);

impl Stopped {
    fn new(name: &str) -> Self {
        let pid = Pid::from_raw(process(name).unwrap_or_else(|| panic!("no {name}")) as i32);
        kill(pid, Signal::SIGSTOP).unwrap();
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// Tests a watch that gets 410: etcd is compacted past the version from which the watch continues, and the watch's
/// connection is cut. An API server with a watch cache may still have the version. One with `--watch-cache=false`
/// does not.
pub fn forgotten(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod("through-410", json!({ ROLE: "kept" }), json!({}));
    assert_eq!(pod.role(), "kept");
    let kubeconfig = std::env::var_os("KUBECONFIG").unwrap();
    let (agent, runtime_dir) = agent(cluster, "through-410", kubeconfig.as_ref(), &["--log", "debug"]);
    within(Duration::from_secs(15), "an agent that is ready", || {
        readiness(&runtime_dir).0
    });
    let Some(etcdctl) = find("etcdctl") else {
        assert!(std::env::var_os("CI").is_none(), "etcdctl is missing");
        eprintln!("no etcdctl here: nothing is compacted");
        return;
    };
    agent.signal(Signal::SIGSTOP).unwrap();
    for turn in 0..3 {
        cluster.annotate("pod", "through-410", &format!("example.com/turn={turn}"));
    }
    cluster.annotate("pod", "through-410", "iam.amazonaws.com/role=changed");
    let pods: Value = serde_json::from_str(&kubectl(&["get", "--raw", "/api/v1/pods?limit=1"])).unwrap();
    let version = pods["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let run = |program: &std::path::Path, words: &[&str]| {
        let output = Command::new(program)
            .args(words)
            .env("ETCDCTL_API", "3")
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    run(&etcdctl, &["--endpoints", "127.0.0.1:23790", "compact", &version]);
    run("ss".as_ref(), &["--kill", "--tcp", "dst", ":6443"]);
    agent.signal(Signal::SIGCONT).unwrap();
    let remembered = runtime_dir.join("pods.json");
    within(Duration::from_secs(10), "the change", || {
        std::fs::read_to_string(&remembered).is_ok_and(|text| text.contains("\"changed\""))
    });
    within(Duration::from_secs(10), "health", || {
        readiness(&runtime_dir).1.contains("[+]pods ok")
    });
    let failures: Vec<String> = agent
        .logged()
        .lines()
        .filter(|line| line.contains("has failed again"))
        .map(str::to_owned)
        .collect();
    eprintln!("the watch failed {} times: {failures:?}", failures.len());
    pod.until_role("changed");
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn only(outcome: &str, got: &Outcomes) -> bool {
    got.len() == 1 && got.contains_key(outcome)
}

/// Stops the API server. Known pods are served, and requests of unknown pods are held and then refused. hostNetwork
/// pods without a role are not intercepted. All this also holds if the agent restarts meanwhile.
pub fn away(cluster: &Cluster) {
    cluster.permit(".*");
    let known = cluster.pod("known", json!({ ROLE: "known" }), json!({}));
    let host = cluster.pod("host-known", json!({}), json!({ "hostNetwork": true }));
    let with_role = cluster.pod(
        "host-role",
        json!({ ROLE: "host-role" }),
        json!({ "hostNetwork": true }),
    );
    with_role.until_role("host-role");
    assert!(known.has_credentials_of("known"));
    let of_node = node_asks().remove(0);
    // The agent writes the known pods to a file a moment later.
    std::thread::sleep(Duration::from_secs(1));
    let kubepods = kubepods();
    let stopped = Stopped::new("kube-apiserver");
    let start = Instant::now();
    let asking = start_dial(
        &known.pod,
        &[
            "--count",
            "0",
            "--pause",
            "10",
            "--seconds",
            &outage().as_secs().to_string(),
        ],
    );
    assert_eq!(host.role(), of_node);
    // The request of a pod that the agent cannot know is held for the maximum time of an answer, and then refused.
    let unknown = MadeByHand::new("5d9e3a52-8c0f-4f2e-9f0e-2f8c3c1f77aa", &known.netns, &kubepods);
    let held = Instant::now();
    assert!(only("status 503", &dial(&unknown.pod, &[])));
    assert!(
        held.elapsed() > Duration::from_millis(500),
        "{:?}",
        held.elapsed()
    );
    // The agent is killed, and the kubelet starts another.
    let agent = Pid::from_raw(agent_process().unwrap() as i32);
    let half = outage() / 2;
    std::thread::sleep(half.saturating_sub(start.elapsed()));
    let served = outcomes_so_far(&known);
    assert!(only("known", &served), "{served:?}");
    kill(agent, Signal::SIGKILL).unwrap();
    within(Duration::from_secs(20), "another agent", || {
        agent_process().is_some_and(|pid| pid as i32 != agent.as_raw())
    });
    let restarted = Instant::now();
    known.until_role("known");
    eprintln!(
        "served {:.1} s after the kubelet started another agent",
        restarted.elapsed().as_secs_f64()
    );
    assert!(known.has_credentials_of("known"), "from what was remembered");
    with_role.until_role("host-role");
    assert_eq!(host.role(), of_node);
    assert!(only("status 503", &dial(&unknown.pod, &[])));
    std::thread::sleep(outage().saturating_sub(start.elapsed()));
    let got = outcomes(asking);
    assert!(got.contains_key("known"), "{got:?}");
    assert!(
        !got.contains_key(&of_node),
        "the guard lives while the agent does not: {got:?}"
    );
    drop(stopped);
    let back = Instant::now();
    within(Duration::from_secs(30), "an API server that answers", || {
        crate::kit::try_kubectl(&["get", "nodes"]).is_ok()
    });
    cluster.annotate("pod", "known", "iam.amazonaws.com/role=afterwards");
    within(Duration::from_secs(20), "everything right again", || {
        known.role() == "afterwards"
    });
    eprintln!(
        "right again {:.1} s after its return",
        back.elapsed().as_secs_f64()
    );
    cluster.wait_for_agent("metaproxy");
}

fn outcomes_so_far(running: &crate::kit::Running) -> Outcomes {
    dial(&running.pod, &["--count", "50"])
}
