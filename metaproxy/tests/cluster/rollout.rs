//! A new instance beside the old one.

use std::time::Duration;

use serde_json::json;

use crate::common::{outcomes, start_dial};
use crate::kit::{Cluster, kubectl, within};

/// As an update that surges does it, both ways, while a pod asks all the time.
pub fn surge(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod("asking", json!({ "iam.amazonaws.com/role": "steady" }), json!({}));
    assert!(pod.has_credentials_of("steady"));
    let seen = cluster.imds.seen().len();
    let asking = start_dial(&pod.pod, &["--count", "0", "--seconds", "25"]);
    let delete = |release: &str| {
        kubectl(&[
            "delete",
            "daemonset",
            "--namespace",
            "kube-system",
            "--selector",
            &format!("app.kubernetes.io/instance={release}"),
            "--wait=true",
        ]);
        within(Duration::from_secs(30), "an agent that is gone", || {
            kubectl(&[
                "get",
                "pods",
                "--namespace",
                "kube-system",
                "--selector",
                &format!("app.kubernetes.io/instance={release}"),
                "--output",
                "name",
            ])
            .is_empty()
        });
    };
    cluster.apply_chart("second", &["--set", "fullnameOverride=metaproxy-second"]);
    cluster.wait_for_agent("second");
    delete("metaproxy");
    std::thread::sleep(Duration::from_secs(1));
    cluster.apply_chart("metaproxy", &[]);
    cluster.wait_for_agent("metaproxy");
    delete("second");
    let got = outcomes(asking);
    eprintln!("requests while instances changed twice: {got:?}");
    assert_eq!(got.len(), 1, "{got:?}");
    assert!(got["steady"] >= 2500, "at least 100 a second: {got:?}");
    let seen = cluster.imds.seen().split_off(seen);
    let from_pods: Vec<_> = seen
        .iter()
        .filter(|seen| seen.peer.to_string().starts_with("10.244."))
        .collect();
    assert!(from_pods.is_empty(), "{from_pods:?}");
}
