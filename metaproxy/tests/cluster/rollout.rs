//! Tests of a new agent beside the old one.

use std::time::Duration;

use serde_json::json;

use crate::common::{outcomes, start_dial};
use crate::kit::{Cluster, kubectl, within};

/// Runs the agent with only the capabilities that it needs, a read-only root file system and seccomp.
pub fn hardened(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod(
        "by-hardened",
        json!({ "iam.amazonaws.com/role": "hardened" }),
        json!({}),
    );
    let flags = ["--set", "fullnameOverride=metaproxy-second,hardened=true"];
    cluster.apply_chart("second", &flags);
    cluster.wait_for_agent("second");
    // The other agent is removed, so that this one serves.
    remove("metaproxy");
    pod.until_role("hardened");
    assert!(pod.has_credentials_of("hardened"));
    let host = cluster.pod(
        "host-hardened",
        json!({ "iam.amazonaws.com/role": "hardened" }),
        json!({ "hostNetwork": true }),
    );
    host.until_role("hardened");
    cluster.apply_chart("metaproxy", &[]);
    cluster.wait_for_agent("metaproxy");
    remove("second");
}

/// Deletes a release's DaemonSet, and waits until its pods are gone. The agent ends within a second. The kubelet may
/// need up to a minute more to remove the pod from the API, if a container has already ended when the kubelet stops
/// it.
pub fn remove(release: &str) {
    let selector = format!("app.kubernetes.io/instance={release}");
    kubectl(&[
        "delete",
        "daemonset",
        "--namespace",
        "kube-system",
        "--selector",
        &selector,
        "--wait=true",
    ]);
    within(Duration::from_secs(120), "an agent that is gone", || {
        let words = [
            "get",
            "pods",
            "--namespace",
            "kube-system",
            "--selector",
            &selector,
            "--output",
            "name",
        ];
        kubectl(&words).is_empty()
    });
}

/// Replaces one agent by another and back, as an update with a surge does, while a pod sends requests all the time.
pub fn surge(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod("asking", json!({ "iam.amazonaws.com/role": "steady" }), json!({}));
    assert!(pod.has_credentials_of("steady"));
    let seen = cluster.imds.seen().len();
    let asking = start_dial(&pod.pod, &["--count", "0", "--seconds", "25", "--pause", "4"]);
    cluster.apply_chart("second", &["--set", "fullnameOverride=metaproxy-second"]);
    cluster.wait_for_agent("second");
    remove("metaproxy");
    std::thread::sleep(Duration::from_secs(1));
    cluster.apply_chart("metaproxy", &[]);
    cluster.wait_for_agent("metaproxy");
    remove("second");
    let got = outcomes(asking);
    eprintln!("requests while instances changed twice: {got:?}");
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got["steady"] >= 2500, "100 a second: {got:?}");
    let seen = cluster.imds.seen().split_off(seen);
    let from_pods: Vec<_> = seen
        .iter()
        .filter(|seen| seen.peer.to_string().starts_with("10.244."))
        .collect();
    assert!(from_pods.is_empty(), "{from_pods:?}");
}
