//! Finds the pods and pod templates of an object, and therefore which of its annotations are read.

use serde_json::Value;

use crate::pods::templates::{Template, templates};
use crate::roles::web_identity;

/// Kinds with a pod template at `spec.template`, even if it has no containers (yet).
const WORKLOADS: [&str; 6] = [
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
];

/// Kinds of the Prometheus Operator. Their spec has some fields of a pod's spec, and the pod's metadata in
/// `podMetadata` (API reference of the operator).
const OF_PROMETHEUS: [&str; 4] = ["Alertmanager", "Prometheus", "PrometheusAgent", "ThanosRuler"];

/// The meaning of an object for pods.
#[derive(Debug)]
pub enum Taken<'a> {
    /// The object is a pod.
    Pod(Template<'a>),
    /// The object is a namespace.
    Namespace,
    /// The object is a service account.
    Account,
    /// The object makes pods from these templates; the list may be empty.
    Templates(Vec<Template<'a>>),
}

impl<'a> Taken<'a> {
    /// Reads an object. In an object of an unknown kind, everything that looks like a pod template counts.
    pub fn of(object: &'a Value) -> Self {
        let kind = object["kind"].as_str().unwrap_or_default();
        let version = object["apiVersion"].as_str().unwrap_or("v1");
        let spec = &object["spec"];
        let one = |template: &'a Value| {
            Self::Templates(vec![Template {
                metadata: &template["metadata"],
                spec: &template["spec"],
            }])
        };
        match kind {
            "Pod" if version == "v1" => Self::Pod(Template {
                metadata: &object["metadata"],
                spec,
            }),
            "Namespace" if version == "v1" => Self::Namespace,
            "ServiceAccount" if version == "v1" => Self::Account,
            "CronJob" => one(&spec["jobTemplate"]["spec"]["template"]),
            workload if WORKLOADS.contains(&workload) => one(&spec["template"]),
            operators
                if OF_PROMETHEUS.contains(&operators) && version.starts_with("monitoring.coreos.com/") =>
            {
                Self::Templates(vec![Template {
                    metadata: &spec["podMetadata"],
                    spec,
                }])
            }
            _ => Self::Templates(templates(object)),
        }
    }

    /// Returns the pod, or the pod templates.
    pub fn templates(&self) -> &[Template<'a>] {
        match self {
            Self::Pod(pod) => std::slice::from_ref(pod),
            Self::Templates(all) => all,
            Self::Namespace | Self::Account => &[],
        }
    }

    /// Says whether a value is the spec of a pod.
    pub fn is_spec(&self, value: &Value) -> bool {
        self.templates().iter().any(|one| std::ptr::eq(one.spec, value))
    }

    /// Says whether a key in a part of an object is read, or has a hint elsewhere, as a label of a pod does. An
    /// annotation of a workload is only informative if the pod templates have it too.
    pub fn reads(&self, object: &Value, part: &Value, key: &str) -> bool {
        let is_of = |metadata: &Value| {
            std::ptr::eq(&metadata["annotations"], part) || std::ptr::eq(&metadata["labels"], part)
        };
        let is_own = std::ptr::eq(&object["metadata"]["annotations"], part);
        let has_it = |one: &Template<'_>| !one.metadata["annotations"][key].is_null();
        match self {
            Self::Pod(pod) => is_of(pod.metadata),
            Self::Namespace => false,
            Self::Account => is_own && web_identity::KEYS.contains(&key),
            Self::Templates(all) => {
                all.iter().any(|one| is_of(one.metadata))
                    || (is_own && !all.is_empty() && all.iter().all(has_it))
            }
        }
    }
}
