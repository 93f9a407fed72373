//! Values that `metaproxy migrate` makes of kube2iam's and kiam's manifests, installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::common::agent_binary;
use crate::kit::Cluster;
use crate::rollout::remove;
use crate::tools::{apply, root};

/// Where somebody comes from, the manifest, and a role that its base makes of a name.
const MANIFESTS: [(&str, &str); 3] = [
    ("kube2iam", "kube2iam-readme"),
    ("kiam", "kiam-v3"),
    ("kiam", "kiam-v4"),
];

fn values(dir: &Path, from: &str, name: &str) -> std::path::PathBuf {
    let manifest = root().join(format!("metaproxy/tests/migrate/{name}.yaml"));
    let output = Command::new(agent_binary())
        .args(["migrate", from])
        .arg(manifest)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let path = dir.join(format!("{name}.values.yaml"));
    fs::write(&path, output.stdout).unwrap();
    path
}

/// Each looks on beside the agent that serves, as the guide begins; the last one then takes over.
pub fn values_install(cluster: &Cluster) {
    cluster.permit(".*");
    let annotations = json!({ "iam.amazonaws.com/role": "migrated" });
    let pod = cluster.pod("migrated", annotations, json!({}));
    pod.until_role("migrated");
    // This node is called otherwise than the masters and workers of those clusters.
    let here = [
        "--set",
        "fullnameOverride=metaproxy-second",
        "--set-json",
        "nodeSelector={}",
    ];
    for (from, name) in MANIFESTS {
        let values = values(cluster.dir(), from, name);
        let values = ["--values", values.to_str().unwrap()];
        let looking_on = cluster.template("second", &[&values[..], &here].concat());
        assert!(looking_on.contains("--mode=observe"), "{looking_on}");
        apply(&looking_on);
        cluster.wait_for_agent("second");
        assert!(
            pod.has_credentials_of("migrated"),
            "{name}: the other one goes on serving"
        );
        if name == "kiam-v4" {
            let enforce = ["--set", "mode=enforce"];
            apply(&cluster.template("second", &[&values[..], &here, &enforce].concat()));
            cluster.wait_for_agent("second");
            remove("metaproxy");
            pod.until_role("migrated");
            assert!(pod.has_credentials_of("migrated"));
            cluster.apply_chart("metaproxy", &[]);
            cluster.wait_for_agent("metaproxy");
        }
        remove("second");
    }
}
