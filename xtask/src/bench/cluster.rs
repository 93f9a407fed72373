//! Pods of an API server in miniature, all on one node and with one role.

use anyhow::Result;
use metaproxy_lab::agent::AgentSpec;
use metaproxy_lab::apiserver::FakeApiServer;
use metaproxy_lab::pod::{Pod, PodSpec};
use serde_json::{Value, json};

use super::site::Site;

const NODE: &str = "node1";

/// The API server, and an agent that asks it.
pub struct Cluster {
    api: FakeApiServer,
    /// To start the agent with.
    pub spec: AgentSpec,
}

impl Cluster {
    pub fn new(site: &Site) -> Result<Self> {
        let api = FakeApiServer::start(site.lab.aws())?;
        api.put("namespaces", json!({ "metadata": { "name": "apps" } }));
        api.put(
            "serviceaccounts",
            json!({ "metadata": { "name": "web", "namespace": "apps" } }),
        );
        let spec = AgentSpec {
            cluster: Some((api.kubeconfig(site.lab.dir())?, NODE)),
            ..site.spec(&[])
        };
        Ok(Self { api, spec })
    }

    /// From now on the API server knows of it.
    pub fn put(&self, name: &str, uid: &str) {
        // Of the size that pods have: about 10 KB.
        let fields: serde_json::Map<String, Value> = (0..60)
            .map(|number| {
                (
                    format!("k:{{\"name\":\"VARIABLE_{number}\"}}"),
                    json!({ ".": {}, "f:name": {}, "f:value": {} }),
                )
            })
            .collect();
        let environment: Vec<Value> = (0..60)
            .map(|number| json!({ "name": format!("VARIABLE_{number}"), "value": "a value of some length, as they have" }))
            .collect();
        let object = json!({
            "metadata": {
                "name": name, "namespace": "apps", "uid": uid,
                "annotations": { "iam.amazonaws.com/role": "app" },
                "managedFields": [{
                    "manager": "kubelet", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                    "fieldsV1": { "f:spec": { "f:containers": { "f:env": fields } } },
                }],
            },
            "spec": {
                "nodeName": NODE, "serviceAccountName": "web",
                "containers": [{ "name": "main", "env": environment }],
            },
            "status": { "phase": "Running" },
        });
        self.api.put("pods", object);
    }

    /// And no more.
    pub fn delete(&self, name: &str) {
        self.api.delete("pods", "apps", name);
    }
}

/// A pod that runs on the node, and that the agent hears of from the API server only.
pub fn running(site: &Site, name: &'static str) -> Result<Pod> {
    site.pod(PodSpec {
        known: false,
        ..PodSpec::without_role(name)
    })
}
