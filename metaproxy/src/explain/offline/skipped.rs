//! Objects of manifests that were left out.

use std::fmt;

use serde_json::Value;

use crate::explain::printable;
use crate::roles::AnnotationKeys;
use crate::roles::web_identity;

/// An object in which no pod template was found, and which may make pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// File and line.
    place: String,
    /// Kind, namespace and name.
    object: String,
    /// An annotation about roles that is somewhere in it.
    mentions: Option<String>,
}

/// Kinds of Kubernetes' own that make no pods.
const WITHOUT_PODS: [&str; 40] = [
    "APIService",
    "CSIDriver",
    "CSINode",
    "CertificateSigningRequest",
    "ClusterRole",
    "ClusterRoleBinding",
    "ConfigMap",
    "ControllerRevision",
    "CustomResourceDefinition",
    "DeviceClass",
    "EndpointSlice",
    "Endpoints",
    "Event",
    "FlowSchema",
    "HorizontalPodAutoscaler",
    "IPAddress",
    "Ingress",
    "IngressClass",
    "Lease",
    "LimitRange",
    "MutatingAdmissionPolicy",
    "MutatingAdmissionPolicyBinding",
    "MutatingWebhookConfiguration",
    "NetworkPolicy",
    "Node",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PriorityClass",
    "PriorityLevelConfiguration",
    "ResourceQuota",
    "Role",
    "RoleBinding",
    "RuntimeClass",
    "Secret",
    "Service",
    "StorageClass",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "ValidatingWebhookConfiguration",
];

impl Skipped {
    /// Of an object without a pod template; `None` of a kind that makes no pods.
    pub(super) fn of(place: String, object: &Value, keys: &AnnotationKeys) -> Option<Self> {
        let kind = object["kind"].as_str();
        if kind.is_some_and(|kind| WITHOUT_PODS.contains(&kind)) {
            return None;
        }
        let metadata = &object["metadata"];
        let parts = [metadata["namespace"].as_str(), metadata["name"].as_str()];
        let name = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
        let wanted = [&keys.role, &keys.external_id, &keys.session_name];
        let mentions = wanted
            .into_iter()
            .map(String::as_str)
            .chain([web_identity::ROLE_KEY])
            .find(|key| has(object, key))
            .map(str::to_owned);
        Some(Self {
            place,
            object: format!("{} {name}", kind.unwrap_or("an object without `kind`"))
                .trim_end()
                .to_owned(),
            mentions,
        })
    }

    /// Whether it asks for a role, by what is in it: then nobody can tell whether its pods get that.
    pub fn is_bad(&self) -> bool {
        self.mentions.is_some()
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = match &self.mentions {
            Some(key) => format!(
                "{}: {} has {key}, but no pod template that could be explained; give the pods that it makes, or the manifests \
                 that become of it (`helm template`, `kubectl kustomize`)",
                self.place, self.object
            ),
            None => format!(
                "{}: {} was skipped: no pod template is in it",
                self.place, self.object
            ),
        };
        f.write_str(&printable(&line))
    }
}

/// Whether a key, or a text with it, stands anywhere in a value.
fn has(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| name == key || has(value, key)),
        Value::Array(items) => items.iter().any(|value| has(value, key)),
        Value::String(text) => text.contains(key),
        _ => false,
    }
}
