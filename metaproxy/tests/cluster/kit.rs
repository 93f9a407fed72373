//! A cluster of one node with metaproxy installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use metaproxy_lab as lab;
use metaproxy_lab::imds::FakeImds;
use metaproxy_lab::netns::{Netns, ip};
use metaproxy_lab::pod::Pod;
use metaproxy_lab::sts::FakeSts;
use serde_json::{Value, json};

use crate::common::{client_binary, dial, node_keys, outcomes, start_dial};
pub use crate::tools::{apply, kubectl, kubectl_json, process, try_kubectl, within};
use crate::tools::{image, load_image, root, tool};

/// The namespace of the objects that the test creates.
pub const NAMESPACE: &str = "metaproxy-test";

/// The addresses of the metadata service and of STS, which the test assigns on the node.
const ADDRESSES: [&str; 3] = ["169.254.169.254/32", "fd00:ec2::254/128", "10.200.0.2/32"];

pub const BASE: &str = "arn:aws:iam::123456789012:role/";

/// The image of the test's pods, which the cluster must already have.
const BUSYBOX: &str = "localhost/busybox:1";

pub struct Cluster {
    pub imds: FakeImds,
    pub sts: FakeSts,
    pub node: String,
    before: String,
    dir: PathBuf,
}

/// Removes everything that the test has changed on the node and in the cluster.
impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = try_kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
        for release in ["metaproxy", "second"] {
            let _ = try_kubectl(&[
                "delete",
                "daemonset,clusterrole,clusterrolebinding,serviceaccount",
                "--all-namespaces",
                "--selector",
                &format!("app.kubernetes.io/instance={release}"),
            ]);
        }
        for address in ADDRESSES {
            let _ = ip(&["address", "delete", address, "dev", "lo"]);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Cluster {
    /// Imports the image, starts the fakes of AWS, and installs the chart.
    pub fn install() -> Self {
        lab::require_root().unwrap();
        let nodes: Value = kubectl_json(&["get", "nodes"]);
        let nodes = nodes["items"].as_array().unwrap();
        assert_eq!(
            nodes.len(),
            1,
            "these tests are for a cluster of one node, and run on it"
        );
        let node = nodes[0]["metadata"]["name"].as_str().unwrap().to_owned();
        let dir = std::env::temp_dir().join(format!("metaproxy-cluster-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();

        let netns = Netns::of_this_process().unwrap();
        for address in ADDRESSES {
            let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
            let mut words = vec!["address", "replace", address, "dev", "lo"];
            words.extend(nodad);
            ip(&words).unwrap();
        }
        let imds = FakeImds::start(&netns, node_keys()).unwrap();
        let sts = FakeSts::start(&netns, Duration::ZERO).unwrap();
        load_image();
        // The namespace of an earlier run may still be terminating.
        within(Duration::from_secs(90), "a namespace of the test's own", || {
            let _ = try_kubectl(&["create", "namespace", NAMESPACE]);
            try_kubectl(&[
                "get",
                "namespace",
                NAMESPACE,
                "--output",
                "jsonpath={.status.phase}",
            ])
            .is_ok_and(|phase| phase == "Active")
        });
        let cluster = Self {
            imds,
            sts,
            node,
            before: lab::leftovers::snapshot(&netns).unwrap(),
            dir,
        };
        cluster.apply_chart("metaproxy", &[]);
        cluster.wait_for_agent("metaproxy");
        cluster
    }

    /// Installs or changes a release of the chart.
    pub fn apply_chart(&self, release: &str, flags: &[&str]) {
        let manifests = self.chart(release, flags);
        apply(&manifests);
    }

    /// Renders the chart for this cluster.
    pub fn chart(&self, release: &str, flags: &[&str]) -> String {
        let usual = ["--set", "namespacePolicy=required,webIdentity.enabled=true"];
        self.template(release, &[&usual, flags].concat())
    }

    /// Renders the chart with only those values that this cluster requires.
    pub fn template(&self, release: &str, flags: &[&str]) -> String {
        let version = kubectl_json(&["version"]);
        let version = version["serverVersion"]["gitVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        let mut command = Command::new(tool("helm"));
        command
            .arg("template")
            .arg(release)
            .arg(root().join("deploy/helm/metaproxy"))
            .args(["--namespace", "kube-system", "--kube-version", &version])
            .args([
                "--set",
                &format!(
                    "image.repository={},image.tag={},image.pullPolicy=Never",
                    image().0,
                    image().1
                ),
            ])
            .args([
                "--set",
                "sessions.region=us-east-1",
                "--set",
                &format!("sessions.stsEndpoint={}", FakeSts::url()),
            ])
            .args(flags);
        let output = command.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn wait_for_agent(&self, release: &str) {
        within(
            Duration::from_secs(90),
            "an agent and a guard that are ready",
            || {
                let found = kubectl_json(&[
                    "get",
                    "daemonset",
                    "--namespace",
                    "kube-system",
                    "--selector",
                    &format!("app.kubernetes.io/instance={release}"),
                ]);
                let is_ready = |daemonset: &Value| {
                    let status = &daemonset["status"];
                    // Until the controller has seen a change, the status describes the previous pod.
                    status["observedGeneration"] == daemonset["metadata"]["generation"]
                        && status["desiredNumberScheduled"] == 1
                        && status["numberReady"] == 1
                        && status["updatedNumberScheduled"] == 1
                };
                let daemonsets = found["items"].as_array().unwrap();
                daemonsets.len() == 2 && daemonsets.iter().all(is_ready)
            },
        );
    }

    /// Returns the last lines of the agents' logs.
    pub fn agents_say(&self, lines: u32) -> String {
        let tail = format!("--tail={lines}");
        let selector = "app.kubernetes.io/name=metaproxy";
        let words = [
            "logs",
            "--namespace",
            "kube-system",
            "--selector",
            selector,
            &tail,
            "--prefix",
        ];
        try_kubectl(&words).unwrap_or_else(|error| error)
    }

    /// Returns a snapshot of the node's network before the installation.
    pub fn network_before(&self) -> &str {
        &self.before
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates a pod that sleeps, and waits until it runs.
    pub fn pod(&self, name: &'static str, annotations: Value, spec: Value) -> Running {
        self.create_pod(name, annotations, spec);
        self.running(name)
    }

    pub fn create_pod(&self, name: &str, annotations: Value, spec: Value) {
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": NAMESPACE, "annotations": annotations },
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "tolerations": [{ "operator": "Exists" }],
                "containers": [{
                    "name": "main",
                    "image": BUSYBOX,
                    "imagePullPolicy": "Never",
                    "command": ["sleep", "100000"],
                }],
            },
        });
        merge(&mut object["spec"], &spec);
        apply(&object.to_string());
    }

    /// Waits until a pod runs, and returns it.
    pub fn running(&self, name: &'static str) -> Running {
        let mut found = Value::Null;
        within(Duration::from_secs(30), "a pod that runs", || {
            found = kubectl_json(&["get", "pod", name, "--namespace", NAMESPACE]);
            found["status"]["phase"] == "Running"
        });
        let uid = found["metadata"]["uid"].as_str().unwrap();
        let id = found["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap();
        let id = id.rsplit('/').next().unwrap();
        let cgroup = cgroup_of(uid, id);
        let pid = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        let pid: u32 = pid.lines().next().unwrap().parse().unwrap();
        let netns = Netns::of_process(pid).unwrap();
        Running {
            pod: Pod::of_cluster(name, uid, cgroup, &netns).unwrap(),
            netns,
            name,
        }
    }

    pub fn annotate(&self, kind: &str, name: &str, annotation: &str) {
        kubectl(&[
            "annotate",
            "--overwrite",
            kind,
            name,
            "--namespace",
            NAMESPACE,
            annotation,
        ]);
    }

    /// Permits these roles in the test's namespace.
    pub fn permit(&self, roles: &str) {
        kubectl(&[
            "annotate",
            "--overwrite",
            "namespace",
            NAMESPACE,
            &format!("iam.amazonaws.com/permitted={roles}"),
        ]);
    }
}

/// A running pod. Dropping this value deletes the pod.
pub struct Running {
    pub pod: Pod,
    pub netns: Netns,
    name: &'static str,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = try_kubectl(&[
            "delete",
            "pod",
            self.name,
            "--namespace",
            NAMESPACE,
            "--wait=false",
            "--grace-period=0",
            "--force",
        ]);
    }
}

impl Running {
    /// Returns the name of the pod's role, or the answer's status if it has none.
    pub fn role(&self) -> String {
        let got = dial(&self.pod, &[]);
        assert_eq!(got.len(), 1, "{got:?}");
        got.into_keys().next().unwrap()
    }

    /// Waits until the pod has this role, and returns how long that took.
    pub fn until_role(&self, wanted: &str) -> Duration {
        let start = Instant::now();
        let mut got = self.role();
        while got != wanted {
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{}: {got}, not {wanted}",
                self.name
            );
            got = self.role();
        }
        start.elapsed()
    }

    /// Returns whether the pod's document contains the credentials that STS gave for a role.
    pub fn has_credentials_of(&self, role: &str) -> bool {
        let path = format!("/latest/meta-data/iam/security-credentials/{role}");
        let got = outcomes(start_dial(&self.pod, &["--path", &path]));
        got.keys()
            .all(|document| document.contains(&format!("secret-of-{role}")))
    }
}

/// Runs the lab's client as a process of the node, and returns the outcomes.
pub fn node_asks() -> Vec<String> {
    let output = Command::new(client_binary())
        .arg("dial")
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let got: crate::common::Outcomes = serde_json::from_slice(&output.stdout).unwrap();
    got.into_keys().collect()
}

fn merge(into: &mut Value, from: &Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        for (key, value) in from {
            into.insert(key.clone(), value.clone());
        }
    }
}

/// Returns a container's cgroup (`…/kubepods/…/pod<uid>/<id>`). Finds it with either naming scheme of the kubelet.
pub fn cgroup_of(uid: &str, id: &str) -> PathBuf {
    fn find(dir: &Path, uid: &str, id: &str, levels: u8) -> Option<PathBuf> {
        let entries = fs::read_dir(dir)
            .ok()?
            .filter_map(Result::ok)
            .map(|entry| entry.path());
        let dirs: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
        let name = |path: &PathBuf| {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
        };
        let is_it = |path: &&PathBuf| {
            let below = path.to_string_lossy().replace('_', "-");
            below.contains(uid) && name(path).contains(id)
        };
        dirs.iter()
            .find(is_it)
            .cloned()
            .or_else(|| (levels > 0).then(|| dirs.iter().find_map(|dir| find(dir, uid, id, levels - 1)))?)
    }
    let root = lab::cgroup2_mount().unwrap();
    find(&root, uid, id, 7).unwrap_or_else(|| panic!("no cgroup of pod {uid}, container {id}"))
}

/// A pod's cgroup that the test creates as the kubelet does, with a process of the test in it. The API server does
/// not know the pod (yet), or knows it by another name.
pub struct MadeByHand {
    pub pod: Pod,
    cgroup: PathBuf,
}

impl MadeByHand {
    pub fn new(uid: &str, netns: &Netns, kubepods: &Path) -> Self {
        let cgroup = kubepods.join(format!("besteffort/pod{uid}"));
        let container = cgroup.join("c0ffee");
        fs::create_dir_all(&container).unwrap();
        let pod = Pod::of_cluster("by-hand", uid, container, netns).unwrap();
        Self { pod, cgroup }
    }
}

impl Drop for MadeByHand {
    fn drop(&mut self) {
        lab::kill_all_in(&self.cgroup);
        lab::remove_cgroup(&self.cgroup);
    }
}
