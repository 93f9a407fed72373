//! Pods of a fake API server, all on one node and with one role.

use anyhow::Result;
use metaproxy_lab::agent::AgentSpec;
use metaproxy_lab::apiserver::FakeApiServer;
use metaproxy_lab::pod::{Pod, PodSpec};
use serde_json::{Value, json};

use super::site::Site;

const NODE: &str = "node1";

/// The fake API server, and the settings of an agent that uses it.
pub struct Cluster {
    api: FakeApiServer,
    /// The settings to start the agent with.
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

    /// Adds a pod to the API server.
    pub fn put(&self, name: &str, uid: &str) {
        // The size is typical of pods: about 10 KB.
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

    /// Removes a pod from the API server.
    pub fn delete(&self, name: &str) {
        self.api.delete("pods", "apps", name);
    }
}

/// Makes a pod that has no manifest, so that the agent learns of it only from the API server.
pub fn running(site: &Site, name: &'static str) -> Result<Pod> {
    site.pod(PodSpec {
        known: false,
        ..PodSpec::without_role(name)
    })
}
