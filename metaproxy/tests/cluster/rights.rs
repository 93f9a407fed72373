//! Tests of the agent's permissions, and of its reports about missing ones.

use std::time::Duration;

use serde_json::{Value, json};

use crate::api::{agent, kubeconfig_of, readiness, rules_of_chart};
use crate::kit::{Cluster, kubectl, kubectl_json, within};

const TAINT: &str = "metaproxy.test/agent-not-ready";

fn named(rule: &Value) -> String {
    let (verb, resource) = (
        rule["verbs"][0].as_str().unwrap(),
        rule["resources"][0].as_str().unwrap(),
    );
    match rule["apiGroups"][0].as_str().unwrap() {
        "" => format!("{verb} {resource}"),
        group => format!("{verb} {resource}.{group}"),
    }
}

/// Removes one permission of the chart's ClusterRole at a time, and checks that the readiness report names it.
pub fn missing(cluster: &Cluster) {
    let rules = rules_of_chart(cluster, &["--set", &format!("startupTaint={TAINT}")]);
    assert_eq!(rules.len(), 10, "{rules:?}");
    for (index, rule) in rules.iter().enumerate() {
        let left: Vec<&Value> = rules.iter().filter(|other| *other != rule).collect();
        let name = format!("without-{index}");
        let kubeconfig = kubeconfig_of(cluster, &name, &json!(left));
        let (agent, runtime_dir) = agent(cluster, &name, &kubeconfig, &["--startup-taint", TAINT]);
        let name = named(rule);
        within(
            Duration::from_secs(15),
            &format!("a report that names {name}"),
            || {
                let (_, report) = readiness(&runtime_dir);
                report.contains(&format!("this service account may not {name};"))
            },
        );
        let (ready, report) = readiness(&runtime_dir);
        let is_spared = name.starts_with("create events") || name.ends_with(" nodes");
        assert_eq!(ready, is_spared, "{name}: {report}");
        drop(agent);
    }
    // With all permissions the report names none.
    let kubeconfig = kubeconfig_of(cluster, "with-all", &json!(rules));
    let (_agent, runtime_dir) = agent(cluster, "with-all", &kubeconfig, &["--startup-taint", TAINT]);
    within(Duration::from_secs(15), "an agent that lacks nothing", || {
        let (ready, report) = readiness(&runtime_dir);
        ready && report.contains("[+]permissions ok") && report.contains("[+]startup-taint ok")
    });
}

fn is_tainted(cluster: &Cluster) -> bool {
    let node = kubectl_json(&["get", "node", &cluster.node]);
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().any(|taint| taint["key"] == TAINT)
}

/// Checks that the startup taint stays until pods are served and is then removed, and that another taint stays.
pub fn taint(cluster: &Cluster) {
    let other = "metaproxy.test/other";
    let put = |key: &str| {
        kubectl(&[
            "taint",
            "--overwrite",
            "node",
            &cluster.node,
            &format!("{key}=:PreferNoSchedule"),
        ])
    };
    put(TAINT);
    put(other);
    let rules = rules_of_chart(cluster, &["--set", &format!("startupTaint={TAINT}")]);
    // Without the permission the taint is not removed.
    let without: Vec<&Value> = rules.iter().filter(|rule| named(rule) != "patch nodes").collect();
    let kubeconfig = kubeconfig_of(cluster, "cannot-patch", &json!(without));
    let (unable, runtime_dir) = agent(cluster, "cannot-patch", &kubeconfig, &["--startup-taint", TAINT]);
    within(Duration::from_secs(15), "a report", || {
        readiness(&runtime_dir).1.contains("may not patch nodes")
    });
    assert!(is_tainted(cluster));
    drop(unable);
    // Before pods are served the taint is not removed. The pods' cgroup does not exist here.
    let kubeconfig = kubeconfig_of(cluster, "can-patch", &json!(rules));
    let (waiting, runtime_dir) = {
        let nowhere = metaproxy_lab::cgroup2_mount()
            .unwrap()
            .join("metaproxy-test-nowhere");
        agent(
            cluster,
            "waiting",
            &kubeconfig,
            &["--startup-taint", TAINT, "--cgroup", nowhere.to_str().unwrap()],
        )
    };
    within(Duration::from_secs(15), "an agent that waits", || {
        readiness(&runtime_dir).1.contains("[+]pods ok")
    });
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        !readiness(&runtime_dir).0 && is_tainted(cluster),
        "{}",
        readiness(&runtime_dir).1
    );
    drop(waiting);
    let (_agent, runtime_dir) = agent(cluster, "can-patch", &kubeconfig, &["--startup-taint", TAINT]);
    within(Duration::from_secs(15), "a taint that is gone", || {
        !is_tainted(cluster)
    });
    assert!(readiness(&runtime_dir).0);
    let node = kubectl_json(&["get", "node", &cluster.node]);
    assert!(node["spec"]["taints"].to_string().contains(other), "{node}");
    kubectl(&["taint", "node", &cluster.node, &format!("{other}-")]);
}
