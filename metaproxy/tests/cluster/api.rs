//! Starts agents beside those of the DaemonSet, with chosen credentials for the API server.

use std::fs;
use std::path::{Path, PathBuf};

use metaproxy_lab as lab;
use metaproxy_lab::agent::Agent;
use serde_json::{Value, json};

use crate::common::agent_binary;
use crate::kit::{Cluster, NAMESPACE, apply, kubectl, kubectl_json, within};

/// Returns whether an agent is ready, and its report.
pub fn readiness(runtime_dir: &Path) -> (bool, String) {
    let output = std::process::Command::new(agent_binary())
        .args(["probe", "ready", "--runtime-dir"])
        .arg(runtime_dir)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

/// Creates a service account with these RBAC rules, and returns a kubeconfig for it.
pub fn kubeconfig_of(cluster: &Cluster, name: &str, rules: &Value) -> PathBuf {
    let objects = [
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": NAMESPACE } }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/instance": "second" } }, "rules": rules }),
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": name, "labels": { "app.kubernetes.io/instance": "second" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }] }),
    ];
    apply(&json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string());
    let request = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [], "expirationSeconds": 3600 } });
    let path = cluster.dir().join(format!("{name}-request.json"));
    fs::write(&path, request.to_string()).unwrap();
    let url = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token");
    let mut answer = String::new();
    within(std::time::Duration::from_secs(10), "a token", || {
        answer = crate::kit::try_kubectl(&["create", "--raw", &url, "--filename", path.to_str().unwrap()])
            .unwrap_or_default();
        !answer.is_empty()
    });
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let mut config: Value = serde_json::from_str(&kubectl(&[
        "config",
        "view",
        "--raw",
        "--flatten",
        "--minify",
        "--output",
        "json",
    ]))
    .unwrap();
    config["users"][0]["user"] = json!({ "token": answer["status"]["token"] });
    let path = cluster.dir().join(format!("{name}.kubeconfig"));
    fs::write(&path, config.to_string()).unwrap();
    path
}

/// Returns the rules of the chart's ClusterRole, split into one verb of one resource each.
pub fn rules_of_chart(cluster: &Cluster, flags: &[&str]) -> Vec<Value> {
    let path = cluster.dir().join("chart.yaml");
    fs::write(&path, cluster.chart("metaproxy", flags)).unwrap();
    let objects = kubectl(&[
        "create",
        "--dry-run=client",
        "--validate=false",
        "--output",
        "json",
        "--filename",
        path.to_str().unwrap(),
    ]);
    let mut stream = serde_json::Deserializer::from_str(&objects).into_iter::<Value>();
    let items = |value: Value| value["items"].as_array().cloned().unwrap_or_else(|| vec![value]);
    let role = stream
        .by_ref()
        .flat_map(|value| items(value.unwrap()))
        .find(|object| object["kind"] == "ClusterRole")
        .unwrap();
    let mut single = Vec::new();
    for rule in role["rules"].as_array().unwrap() {
        for resource in rule["resources"].as_array().unwrap() {
            for verb in rule["verbs"].as_array().unwrap() {
                single.push(
                    json!({ "apiGroups": rule["apiGroups"], "resources": [resource], "verbs": [verb] }),
                );
            }
        }
    }
    single
}

/// Starts an agent for this node.
pub fn agent(cluster: &Cluster, name: &str, kubeconfig: &Path, flags: &[&str]) -> (Agent, PathBuf) {
    let kubepods = kubepods();
    let mut words = vec!["--node-name", &cluster.node];
    if !flags.contains(&"--cgroup") {
        words.extend(["--cgroup", kubepods.to_str().unwrap()]);
    }
    words.extend(flags);
    agent_of(cluster, name, kubeconfig, &words)
}

/// Starts an agent for the node that the flags name.
pub fn agent_of(cluster: &Cluster, name: &str, kubeconfig: &Path, flags: &[&str]) -> (Agent, PathBuf) {
    let runtime_dir = cluster.dir().join(name);
    let mut words: Vec<String> = [
        "run",
        "--region",
        "us-east-1",
        "--admin-address",
        "off",
        "--namespace-policy",
        "required",
        "--web-identity",
        "on",
        "--sts-endpoint",
        &lab::sts::FakeSts::url(),
    ]
    .map(str::to_owned)
    .to_vec();
    words.extend(["--kubeconfig".to_owned(), kubeconfig.display().to_string()]);
    words.extend(["--runtime-dir".to_owned(), runtime_dir.display().to_string()]);
    words.extend(flags.iter().map(|flag| (*flag).to_owned()));
    (Agent::run(agent_binary(), &words).unwrap(), runtime_dir)
}

/// Returns the path of the pods' cgroup on this machine.
pub fn kubepods() -> PathBuf {
    let root = lab::cgroup2_mount().unwrap();
    let found = kubectl_json(&[
        "get",
        "pods",
        "--namespace",
        "kube-system",
        "--selector",
        "app.kubernetes.io/name=metaproxy",
    ]);
    let uid = found["items"][0]["metadata"]["uid"].as_str().unwrap();
    let id = found["items"][0]["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .unwrap();
    let cgroup = crate::kit::cgroup_of(uid, id.rsplit('/').next().unwrap());
    let below = cgroup.strip_prefix(&root).unwrap();
    let depth = below
        .components()
        .position(|part| part.as_os_str().to_string_lossy().contains("kubepods"))
        .unwrap();
    root.join(below.components().take(depth + 1).collect::<PathBuf>())
}
