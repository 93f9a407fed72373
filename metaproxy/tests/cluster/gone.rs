//! Tests that pods get no credentials of the node while the agent is away. The guard runs in pods of its own.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::{outcomes, start_dial};
use crate::kit::{Cluster, Running, kubectl, node_asks, within};
use crate::tools::{agent_process, guard_process, processes};

const AGENTS: &str = "app.kubernetes.io/name=metaproxy";

/// The time for which a pod sends about 100 requests per second while an agent ends and another starts.
const ASKING_TIME: Duration = Duration::from_secs(25);

fn asking(cluster: &Cluster) -> Running {
    cluster.permit(".*");
    let role = json!({ "iam.amazonaws.com/role": "steady" });
    let pod = cluster.pod("asks-while-gone", role, json!({}));
    pod.until_role("steady");
    pod
}

/// Asserts that a pod never gets the node's role while something happens, and that it gets its own role afterwards.
/// The pod sends requests all the time.
fn nothing_of_the_node_while(cluster: &Cluster, pod: &Running, what: &str, happens: impl FnOnce()) {
    let of_node = node_asks().remove(0);
    let seen = cluster.imds.seen().len();
    let seconds = ASKING_TIME.as_secs().to_string();
    let words = [
        "--count",
        "0",
        "--seconds",
        &seconds,
        "--pause",
        "10",
        "--timeout",
        "500",
    ];
    let asking = start_dial(&pod.pod, &words);
    happens();
    let got = outcomes(asking);
    eprintln!("{what}: {got:?}");
    assert!(!got.contains_key(&of_node), "{what}: {got:?}");
    let seen = cluster.imds.seen().split_off(seen);
    let from_pods = seen
        .iter()
        .filter(|seen| seen.peer.to_string().starts_with("10.244."));
    assert_eq!(
        from_pods.count(),
        0,
        "{what}: the node's metadata service saw a pod"
    );
    assert!(
        got.values().sum::<usize>() > 500,
        "{what}: it asked all the time: {got:?}"
    );
    pod.until_role("steady");
}

fn another_agent_than(before: u32) {
    within(Duration::from_secs(90), "another agent", || {
        agent_process().is_some_and(|pid| pid != before)
    });
}

fn delete_agents_pod() {
    let words = [
        "delete",
        "pod",
        "--namespace",
        "kube-system",
        "--selector",
        AGENTS,
        "--wait=false",
    ];
    let before = agent_process().expect("an agent");
    kubectl(&words);
    another_agent_than(before);
}

/// Deletes the pod of an agent that is updated with a surge, and that of an agent with a fixed port, which is not.
pub fn deleted(cluster: &Cluster) {
    let pod = asking(cluster);
    nothing_of_the_node_while(cluster, &pod, "the agent's pod deleted", delete_agents_pod);
    cluster.wait_for_agent("metaproxy");
    let fixed = ["--set", "interception.listenPort=18181"];
    nothing_of_the_node_while(cluster, &pod, "an upgrade to a fixed port", || {
        cluster.apply_chart("metaproxy", &fixed);
        cluster.wait_for_agent("metaproxy");
    });
    let upgraded = [&fixed[..], &["--set", "sessions.duration=55m"]].concat();
    nothing_of_the_node_while(cluster, &pod, "an upgrade with a fixed port", || {
        cluster.apply_chart("metaproxy", &upgraded);
        cluster.wait_for_agent("metaproxy");
    });
    nothing_of_the_node_while(cluster, &pod, "deleted with a fixed port", delete_agents_pod);
    cluster.apply_chart("metaproxy", &[]);
    cluster.wait_for_agent("metaproxy");
}

/// Kills the pause process of the agent's pod, so that the kubelet stops the whole pod and creates its sandbox again.
pub fn sandbox_killed(cluster: &Cluster) {
    let pod = asking(cluster);
    let words = [
        "get",
        "pod",
        "--namespace",
        "kube-system",
        "--selector",
        AGENTS,
        "--output",
    ];
    let uid = kubectl(&[&words[..], &["jsonpath={.items[0].metadata.uid}"]].concat());
    let of_the_pod = |pid: &u32| {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        cgroup.replace('_', "-").contains(&uid)
    };
    let pause = processes("pause")
        .find(of_the_pod)
        .expect("the sandbox of the agent's pod");
    let before = agent_process().expect("an agent");
    nothing_of_the_node_while(cluster, &pod, "the agent's sandbox killed", || {
        kill(Pid::from_raw(pause as i32), Signal::SIGKILL).unwrap();
        another_agent_than(before);
    });
    cluster.wait_for_agent("metaproxy");
}

/// Kills first the guard and then the agent, each of them twice. After the second time the kubelet delays the
/// restart.
pub fn killed_apart(cluster: &Cluster) {
    let pod = asking(cluster);
    let twice = |process: fn() -> Option<u32>| {
        for _ in 0..2 {
            let mut before = None;
            within(Duration::from_secs(60), "a process to kill", || {
                before = process();
                before.is_some()
            });
            kill(Pid::from_raw(before.unwrap() as i32), Signal::SIGKILL).unwrap();
            within(Duration::from_secs(60), "its end", || process() != before);
        }
    };
    nothing_of_the_node_while(cluster, &pod, "the guard killed twice", || twice(guard_process));
    within(Duration::from_secs(90), "a guard", || guard_process().is_some());
    cluster.wait_for_agent("metaproxy");
    nothing_of_the_node_while(cluster, &pod, "the agent killed twice", || twice(agent_process));
    within(Duration::from_secs(90), "an agent", || agent_process().is_some());
    cluster.wait_for_agent("metaproxy");
}
