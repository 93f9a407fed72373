//! A node of the lab whose pods come from a fake API server.

use std::process::Command;

use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::apiserver::FakeApiServer;
use metaproxy_lab::pod::{Pod, PodSpec};
use serde_json::{Value, json};

use super::sessions::ROLE;
use super::{Node, agent_binary, counts, dial, node, node_alone};

pub const NODE: &str = "node1";
pub const TAINT: &str = "metaproxy/agent-not-ready";

pub struct Cluster {
    pub node: Node,
    pub api: FakeApiServer,
}

pub fn cluster() -> Option<Cluster> {
    Some(Cluster::of(node()?))
}

/// Makes a cluster, and lets no other lab run beside it.
pub fn cluster_alone() -> Option<Cluster> {
    Some(Cluster::of(node_alone()?))
}

impl Cluster {
    fn of(node: Node) -> Self {
        let api = FakeApiServer::start(node.lab.aws()).unwrap();
        api.put("namespaces", json!({ "metadata": { "name": "apps" } }));
        Self { node, api }
    }

    pub fn spec(&self, flags: &[&str]) -> AgentSpec {
        let mut spec = self.node.spec();
        if flags.contains(&"--namespace-policy") {
            let off = spec
                .flags
                .iter()
                .position(|flag| flag == "--namespace-policy")
                .unwrap();
            spec.flags.drain(off..=off + 1);
        }
        AgentSpec {
            cluster: Some((self.api.kubeconfig(self.node.lab.dir()).unwrap(), NODE)),
            ..spec.with(flags)
        }
    }

    pub fn agent(&self, flags: &[&str]) -> Agent {
        Agent::start(&self.node.lab, &self.spec(flags)).unwrap()
    }

    /// Makes a pod of the lab. The API server does not know it yet.
    pub fn pod(&self, name: &'static str) -> Pod {
        let spec = PodSpec {
            known: false,
            ..PodSpec::without_role(name)
        };
        self.node.lab.pod(spec).unwrap()
    }

    /// Adds a pod to the API server, or changes it.
    pub fn put(&self, name: &str, pod: &Pod, annotations: Value) {
        self.api.put(
            "pods",
            json!({
                "metadata": { "name": name, "namespace": "apps", "uid": pod.uid(), "annotations": annotations },
                "spec": { "nodeName": NODE, "serviceAccountName": "web", "containers": [] },
                "status": { "phase": "Running" },
            }),
        );
    }

    pub fn with_role(&self, name: &'static str, role: &str) -> Pod {
        let pod = self.pod(name);
        self.put(name, &pod, json!({ ROLE: role }));
        pod
    }

    pub fn report(&self) -> (bool, String) {
        let output = Command::new(agent_binary())
            .args(["probe", "ready", "--runtime-dir"])
            .arg(self.node.lab.dir().join("run"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    pub fn reports(&self, text: &str) -> bool {
        self.report().1.contains(text)
    }
}

pub fn has(pod: &Pod, role: &str) -> bool {
    dial(pod, &[]) == counts([(role, 1)])
}
