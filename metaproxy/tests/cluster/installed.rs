//! Tests of the chart's default installation.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use metaproxy_lab::netns::Netns;
use metaproxy_lab::{bpf, leftovers};
use serde_json::json;

use crate::api::{agent_of, kubepods, readiness};
use crate::common::dial;
use crate::kit::{
    Cluster, MadeByHand, NAMESPACE, Running, apply, kubectl, node_asks, process, try_kubectl, within,
};
use crate::tools::{agent_process, metaproxy_processes};

const ROLE: &str = "iam.amazonaws.com/role";

/// Tests besteffort, burstable, guaranteed and hostNetwork pods, with and without roles.
pub fn every_kind_of_pod(cluster: &Cluster) {
    cluster.permit("of-.*");
    let resources = |requests: serde_json::Value, limits: serde_json::Value| {
        json!({ "containers": [{
            "name": "main", "image": "localhost/busybox:1", "imagePullPolicy": "Never",
            "command": ["sleep", "100000"],
            "resources": { "requests": requests, "limits": limits },
        }]})
    };
    let small = json!({ "cpu": "10m", "memory": "16Mi" });
    let classes = [
        ("besteffort", json!({})),
        ("burstable", resources(json!({ "cpu": "10m" }), json!({}))),
        ("guaranteed", resources(small.clone(), small)),
    ];
    for (class, spec) in classes {
        let role = format!("of-{class}");
        let with = cluster.pod(class, json!({ ROLE: role }), spec.clone());
        assert_eq!(with.role(), role);
        assert!(with.has_credentials_of(&role));
        drop(with);
        let without = cluster.pod(name_without(class), json!({}), spec);
        assert_eq!(without.role(), "status 404");
    }
    let host = |name, annotations| cluster.pod(name, annotations, json!({ "hostNetwork": true }));
    let of_node = node_asks();
    assert!(of_node[0].contains("node"), "{of_node:?}");
    let with = host("host-with", json!({ ROLE: "of-host" }));
    with.until_role("of-host");
    assert!(with.has_credentials_of("of-host"));
    let refused = host("host-refused", json!({ ROLE: "another" }));
    // The list shows the role's name, and the document contains the reason for the refusal.
    refused.until_role("another");
    assert!(!refused.has_credentials_of("another"));
    let without = host("host-without", json!({}));
    assert_eq!(without.role(), of_node[0], "untouched");
    assert_eq!(node_asks(), of_node, "and so is the node itself");
    drop((with, refused));
    let other = cluster.pod("beside-static", json!({}), json!({}));
    static_pods(cluster, &other.netns);
}

fn name_without(class: &str) -> &'static str {
    match class {
        "besteffort" => "besteffort-without",
        "burstable" => "burstable-without",
        _ => "guaranteed-without",
    }
}

/// Tests static pods. A static pod's cgroup is named after the hash of its manifest, and its mirror in the API has
/// another UID. This cluster's kubelet runs no static pod. The test therefore creates the cgroup, and the mirror
/// belongs to a node that exists only as an API object.
fn static_pods(cluster: &Cluster, pods_netns: &Netns) {
    const NODE: &str = "metaproxy-test-static";
    let node = || kubectl(&["get", "node", NODE, "--output", "jsonpath={.metadata.uid}"]);
    let mirror = |name: &str, hash: &str, annotations: serde_json::Value, host_network: bool| {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": NAMESPACE, "annotations": {
                "kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash, "kubernetes.io/config.source": "file",
            }, "ownerReferences": [
                { "apiVersion": "v1", "kind": "Node", "name": NODE, "uid": node().trim(), "controller": true },
            ]},
            "spec": { "nodeName": NODE, "hostNetwork": host_network, "tolerations": [{ "operator": "Exists" }],
                "containers": [{ "name": "main", "image": "none" }] },
        });
        for (key, value) in annotations.as_object().unwrap() {
            object["metadata"]["annotations"][key] = value.clone();
        }
        apply(&object.to_string());
        // The kubelet sets the status in this way, which proves that the mirror is genuine.
        let patch = json!({ "status": { "startTime": "2026-01-01T00:00:00Z" } }).to_string();
        let status = ["--subresource", "status", "--type", "merge", "--patch", &patch];
        kubectl(&[&["patch", "pod", name, "--namespace", NAMESPACE][..], &status].concat());
    };
    let hashes = [
        "0123456789abcdef0123456789abcdef",
        "1123456789abcdef0123456789abcdef",
        "2123456789abcdef0123456789abcdef",
    ];
    apply(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE } }).to_string());
    mirror("static-with", hashes[0], json!({ ROLE: "of-static" }), false);
    mirror("static-host", hashes[1], json!({ ROLE: "of-static-host" }), true);
    mirror("static-without", hashes[2], json!({}), true);
    let (host, kubepods) = (Netns::of_this_process().unwrap(), kubepods());
    let made = [
        MadeByHand::new(hashes[0], pods_netns, &kubepods),
        MadeByHand::new(hashes[1], &host, &kubepods),
        MadeByHand::new(hashes[2], &host, &kubepods),
    ];
    // The DaemonSet's agent serves the real node, and would answer first.
    kubectl(&[
        "patch",
        "daemonset",
        "metaproxy",
        "--namespace",
        "kube-system",
        "--patch",
        r#"{"spec":{"template":{"spec":{"nodeSelector":{"metaproxy-test":"nowhere"}}}}}"#,
    ]);
    within(Duration::from_secs(30), "an agent that is gone", || {
        agent_process().is_none()
    });
    let kubeconfig = std::env::var_os("KUBECONFIG").unwrap();
    let flags = ["--node-name", NODE, "--cgroup", kubepods.to_str().unwrap()];
    let (agent, runtime_dir) = agent_of(cluster, "static", kubeconfig.as_ref(), &flags);
    within(Duration::from_secs(15), "an agent that is ready", || {
        readiness(&runtime_dir).0
    });
    let role = |index: usize| dial(&made[index].pod, &[]).into_keys().next().unwrap();
    within(Duration::from_secs(2), "roles of static pods", || {
        role(0) == "of-static" && role(1) == "of-static-host"
    });
    assert_eq!(role(2), node_asks()[0], "untouched");
    drop((agent, made));
    kubectl(&["delete", "node", NODE]);
    kubectl(&[
        "delete",
        "pods",
        "static-with",
        "static-host",
        "static-without",
        "--namespace",
        NAMESPACE,
        "--grace-period=0",
        "--force",
    ]);
    kubectl(&[
        "patch",
        "daemonset",
        "metaproxy",
        "--namespace",
        "kube-system",
        "--type=json",
        "--patch",
        r#"[{"op":"remove","path":"/spec/template/spec/nodeSelector/metaproxy-test"}]"#,
    ]);
    cluster.wait_for_agent("metaproxy");
}

/// Tests Jobs whose process requests credentials immediately at its start.
pub fn jobs(cluster: &Cluster) {
    cluster.permit(".*");
    let before = cluster.imds.seen().len();
    for number in 0..20 {
        let name = format!("first-act-{number}");
        let (list, role) = (
            "http://169.254.169.254/latest/meta-data/iam/security-credentials/",
            "of-job",
        );
        // The script sends the two requests that an SDK sends, and measures their time with the container's clock.
        let script = format!(
            "s=$(cut -d' ' -f1 /proc/uptime); n=$(wget -q -O - {list}); d=$(wget -q -O - {list}{role}); \
             e=$(cut -d' ' -f1 /proc/uptime); echo \"$n $s $e $d\""
        );
        apply(
            &json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": { "name": name, "namespace": NAMESPACE },
                "spec": { "backoffLimit": 0, "template": {
                    "metadata": { "annotations": { ROLE: role } },
                    "spec": { "restartPolicy": "Never", "containers": [{
                        "name": "main", "image": "localhost/busybox:1", "imagePullPolicy": "Never",
                        "command": ["sh", "-c", script],
                    }]},
                }},
            })
            .to_string(),
        );
    }
    let mut took = Vec::new();
    for number in 0..20 {
        let job = format!("job/first-act-{number}");
        let mut said = String::new();
        within(Duration::from_secs(60), "a job that ends", || {
            said = try_kubectl(&["logs", &job, "--namespace", NAMESPACE]).unwrap_or_default();
            !said.is_empty()
        });
        let words: Vec<&str> = said.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"of-job"), "{job}: {said}");
        let time = |index: usize| -> f64 { words[index].parse().unwrap() };
        took.push(time(2) - time(1));
        assert!(said.contains("secret-of-of-job"), "{job}: {said}");
    }
    took.sort_by(f64::total_cmp);
    eprintln!(
        "list and document as a first act: median {:.2} s, longest {:.2} s",
        took[10], took[19]
    );
    assert!(took[19] < 1.0, "{took:?}");
    let seen = cluster.imds.seen();
    let from_pods = seen[before..]
        .iter()
        .filter(|seen| seen.peer.to_string().starts_with("10.244."));
    assert_eq!(from_pods.count(), 0, "the node's metadata service saw a pod");
    let _ = try_kubectl(&[
        "delete",
        "jobs",
        "--all",
        "--namespace",
        NAMESPACE,
        "--wait=false",
    ]);
}

/// Deletes the DaemonSet with `kubectl delete`, and checks that the node is as it was before.
pub fn removal(cluster: &Cluster) {
    let pod: Running = cluster.pod("left-over", json!({}), json!({}));
    assert_eq!(pod.role(), "status 404");
    let processes: Vec<u32> = metaproxy_processes().collect();
    let loaded = bpf::held_by(&processes).unwrap();
    assert!(!loaded.is_empty(), "agents and guards have programs");
    for release in ["metaproxy", "second"] {
        let _ = try_kubectl(&[
            "delete",
            "daemonset",
            "--namespace",
            "kube-system",
            "--selector",
            &format!("app.kubernetes.io/instance={release}"),
            "--wait=true",
        ]);
    }
    let start = Instant::now();
    within(Duration::from_secs(30), "an agent that is gone", || {
        metaproxy_processes().next().is_none()
    });
    within(Duration::from_secs(5), "programs that are gone", || {
        bpf::still_loaded(&loaded).unwrap().is_empty()
    });
    eprintln!("gone after {:.1} s", start.elapsed().as_secs_f64());
    // deploy/docs/install.md#removing-it describes this.
    assert_eq!(
        pod.role(),
        node_asks()[0],
        "the node's role is reached as without metaproxy"
    );
    let kubelet = process("kubelet").unwrap();
    let runtime_dir = PathBuf::from(format!("/proc/{kubelet}/root/run/metaproxy"));
    let left = std::fs::read_dir(&runtime_dir).unwrap().flatten();
    let mut left: Vec<String> = left
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .collect();
    left.sort();
    assert_eq!(left, ["pods.json", "served-since-boot", "token.key"]);
    std::fs::remove_dir_all(&runtime_dir).unwrap();
    drop(pod);
    let before = without_pods(cluster.network_before());
    let now = || without_pods(&leftovers::snapshot(&Netns::of_this_process().unwrap()).unwrap());
    let start = Instant::now();
    while now() != before {
        let changed: Vec<String> = now().symmetric_difference(&before).cloned().collect();
        assert!(start.elapsed() < Duration::from_secs(20), "{changed:#?}");
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Returns the lines of a network snapshot, without those that the cluster itself changes: interfaces of pods, rules
/// that name them, and counters. The order of lines is ignored.
fn without_pods(snapshot: &str) -> BTreeSet<String> {
    let lines = snapshot.lines().filter(|line| {
        !["veth", "cni", "link/ether", "10.244.", "KUBE-", "CNI-", "fe80::"]
            .iter()
            .any(|word| line.contains(word))
    });
    let without_counts = lines.map(|line| {
        let words = line.split_whitespace().map(|word| {
            let is_count = word.starts_with('[') || word.bytes().all(|byte| byte.is_ascii_digit());
            if is_count { "N" } else { word }
        });
        words.collect::<Vec<_>>().join(" ")
    });
    without_counts.collect()
}
