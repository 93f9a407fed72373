//! What an object says about pods, and so which of its annotations are read.

use serde_json::Value;

use crate::pods::templates::{Template, templates};
use crate::roles::web_identity;

/// Kinds with a template at `spec.template`, even if it has no containers (yet).
const WORKLOADS: [&str; 6] = [
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
];

/// Kinds of the Prometheus Operator, whose spec is that of a pod in part, and has its metadata (`podMetadata` of its API reference).
const OF_PROMETHEUS: [&str; 4] = ["Alertmanager", "Prometheus", "PrometheusAgent", "ThanosRuler"];

/// What is taken from an object.
#[derive(Debug)]
pub enum Taken<'a> {
    /// It is a pod.
    Pod(Template<'a>),
    /// It is a namespace.
    Namespace,
    /// It is a service account.
    Account,
    /// It makes pods by these templates, if there are any.
    Templates(Vec<Template<'a>>),
}

impl<'a> Taken<'a> {
    /// Of an object. Of a kind that is not known, whatever looks like a pod template.
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

    /// Its pods or templates.
    pub fn templates(&self) -> &[Template<'a>] {
        match self {
            Self::Pod(pod) => std::slice::from_ref(pod),
            Self::Templates(all) => all,
            Self::Namespace | Self::Account => &[],
        }
    }

    /// Whether this is the spec of a pod.
    pub fn is_spec(&self, value: &Value) -> bool {
        self.templates().iter().any(|one| std::ptr::eq(one.spec, value))
    }

    /// Whether a key is read that stands in this part of an object: as an annotation, or as a label of a pod, which has a hint. One
    /// on a workload is for people, if its templates have it too.
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
