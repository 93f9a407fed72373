//! Tests of values that `metaproxy migrate` makes of kube2iam's and kiam's manifests. They are installed on the
//! cluster.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::{agent_binary, node_keys};
use crate::kit::{BASE, Cluster, NAMESPACE, Running, within};
use crate::rollout::remove;
use crate::tools::{apply, root};

/// The product that is migrated from, the name of its manifest, and a check of what is special in that manifest.
type Migrated = (&'static str, &'static str, fn(&Cluster));

const MANIFESTS: [Migrated; 5] = [
    ("kube2iam", "kube2iam-readme", no_namespace_is_asked),
    (
        "kube2iam",
        "kube2iam-chart",
        namespaces_have_expressions_and_pods_a_default,
    ),
    (
        "kube2iam",
        "kube2iam-0.15",
        namespaces_have_globs_and_pods_no_default,
    ),
    ("kiam", "kiam-v3", part_of_a_role_is_a_match),
    ("kiam", "kiam-v4", the_servers_role_assumes_all_others),
];

const ROLE: &str = "iam.amazonaws.com/role";

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

/// Installs each manifest's values first in observe mode beside the serving agent, as the guide begins, and then in
/// enforce mode.
pub fn values_install(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod("migrated", json!({ ROLE: "migrated" }), json!({}));
    pod.until_role("migrated");
    for (from, name, _) in MANIFESTS {
        let looking_on = template(cluster, from, name, &[]);
        assert!(looking_on.contains("--mode=observe"), "{looking_on}");
        apply(&looking_on);
        cluster.wait_for_agent("second");
        assert!(
            pod.has_credentials_of("migrated"),
            "{name}: the other one goes on serving"
        );
        remove("second");
    }
    drop(pod);
    remove("metaproxy");
    for (from, name, is_as_it_was) in MANIFESTS {
        apply(&template(cluster, from, name, &["--set", "mode=enforce"]));
        cluster.wait_for_agent("second");
        eprintln!("{name} is enforced");
        is_as_it_was(cluster);
        remove("second");
    }
    cluster.apply_chart("metaproxy", &[]);
    cluster.wait_for_agent("metaproxy");
    cluster.permit(".*");
}

/// Renders the chart with migrated values, for an installation beside the cluster's own one.
fn template(cluster: &Cluster, from: &str, name: &str, more: &[&str]) -> String {
    let values = values(cluster.dir(), from, name);
    // This node does not have the labels of the masters and workers of those clusters.
    let here = [
        "--values",
        values.to_str().unwrap(),
        "--set",
        "fullnameOverride=metaproxy-second",
        "--set-json",
        "nodeSelector={}",
    ];
    cluster.template("second", &[&here, more].concat())
}

fn pod(cluster: &Cluster, name: &'static str, annotations: Value) -> Running {
    cluster.pod(name, annotations, json!({}))
}

/// Asserts that the list shows the role, and that its credentials are served or refused as wanted.
fn is_served(pod: &Running, role: &str, wanted: bool) {
    pod.until_role(role);
    within(Duration::from_secs(5), role, || {
        pod.has_credentials_of(role) == wanted
    });
}

/// Checks kube2iam without `--namespace-restrictions`: a pod gets a role that the namespace's annotation does not
/// allow.
fn no_namespace_is_asked(cluster: &Cluster) {
    cluster.permit("nothing");
    let pod = pod(cluster, "unasked", json!({ ROLE: "migrated" }));
    is_served(&pod, "migrated", true);
}

/// Checks kube2iam with `--namespace-restrictions`, another annotation key and another format. `--default-role` is
/// exempt.
fn namespaces_have_expressions_and_pods_a_default(cluster: &Cluster) {
    cluster.permit("nothing");
    let key = "example.com/allowed-roles";
    cluster.annotate("namespace", NAMESPACE, &format!(r#"{key}=["team-[ab]$"]"#));
    let allowed = pod(cluster, "allowed", json!({ ROLE: "team-a" }));
    let refused = pod(cluster, "refused-by-expression", json!({ ROLE: "team-c" }));
    let without = pod(cluster, "by-default", json!({}));
    is_served(&allowed, "team-a", true);
    is_served(&refused, "team-c", false);
    is_served(&without, "kube2iam-default", true);
    cluster.annotate("namespace", NAMESPACE, &format!("{key}-"));
}

/// Checks kube2iam 0.15 with only `--namespace-restrictions`: globs below its default key. The HTTPS proxy in its
/// environment does not exist here, and no request of the agent uses it.
fn namespaces_have_globs_and_pods_no_default(cluster: &Cluster) {
    cluster.permit("nothing");
    let key = "iam.amazonaws.com/allowed-roles";
    cluster.annotate("namespace", NAMESPACE, &format!(r#"{key}=["team-*"]"#));
    let allowed = pod(cluster, "allowed-by-glob", json!({ ROLE: "team-d" }));
    let refused = pod(cluster, "refused-by-glob", json!({ ROLE: "other-team" }));
    let without = pod(cluster, "without-default", json!({}));
    is_served(&allowed, "team-d", true);
    is_served(&refused, "other-team", false);
    without.until_role("status 404");
    cluster.annotate("namespace", NAMESPACE, &format!("{key}-"));
}

/// Checks kiam before 4.0, with a base ARN that is discovered.
fn part_of_a_role_is_a_match(cluster: &Cluster) {
    cluster.permit("igrat");
    let pod = pod(cluster, "matched", json!({ ROLE: "migrated-v3" }));
    is_served(&pod, "migrated-v3", true);
    cluster.permit("nothing");
    is_served(&pod, "migrated-v3", false);
}

/// Checks kiam 4 with `--assume-role-arn`. This version matches the whole role.
fn the_servers_role_assumes_all_others(cluster: &Cluster) {
    cluster.permit("igrat");
    let pod = pod(cluster, "through-the-server", json!({ ROLE: "migrated-v4" }));
    is_served(&pod, "migrated-v4", false);
    cluster.permit("migrated-v[0-9]");
    is_served(&pod, "migrated-v4", true);
    let calls = cluster.sts.calls();
    let signed_by = |role: &str| {
        let of_role = |call: &&metaproxy_lab::sts::Call| call.role == format!("{BASE}{role}");
        let call = calls.iter().rfind(of_role).unwrap();
        call.signed_by.clone()
    };
    assert_eq!(signed_by("kiam-server"), node_keys().0, "the node assumes that");
    assert_ne!(signed_by("migrated-v4"), node_keys().0, "and that the pods'");
}
