//! What was left out of manifests: objects, files, and annotations that nobody reads.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::occurrences::{Occurrence, keys_of_roles, names, unread};
use super::taken::Taken;
use crate::explain::printable;
use crate::roles::{AnnotationKeys, Rules, web_identity};

/// Something of the manifests that says nothing about a pod, though it may have been meant to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// File and line.
    place: String,
    /// Kind, namespace and name; empty of a file.
    object: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// An object in which no pod template was found, and which may make pods; with an annotation about roles that is in it.
    NoTemplate(Option<String>),
    /// An annotation about roles that stands where nobody reads it.
    Unread(Occurrence),
    /// A role of a service account, and service accounts are not asked.
    Unasked,
    /// A file of another ending that has an annotation about roles; whether it may be a manifest, by its name.
    File { key: String, may_be_manifest: bool },
    /// Other files of another ending.
    Files(Vec<String>),
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

/// How many of the files that were left out are shown by name.
const MAX_SHOWN_FILES: usize = 8;

/// What an object has that says nothing about a pod.
pub(super) fn of(place: &str, object: &Value, taken: &Taken<'_>, rules: &Rules) -> Vec<Skipped> {
    let one = |why: Why| Skipped {
        place: place.to_owned(),
        object: named(object),
        why,
    };
    let kind = object["kind"].as_str().unwrap_or_default();
    let keys = &rules.keys;
    let is_nothing = matches!(taken, Taken::Templates(found) if found.is_empty());
    if is_nothing && !WITHOUT_PODS.contains(&kind) {
        let mentions = keys_of_roles(keys).into_iter().find(|key| has(object, key));
        return vec![one(Why::NoTemplate(mentions.map(str::to_owned)))];
    }
    // What an event tells of a pod is no annotation.
    if kind == "Event" {
        return Vec::new();
    }
    let mut found: Vec<Skipped> = unread(object, taken, keys)
        .into_iter()
        .map(|place| one(Why::Unread(place)))
        .collect();
    let role_of_account = &object["metadata"]["annotations"][web_identity::ROLE_KEY];
    if matches!(taken, Taken::Account) && !rules.web_identity && !role_of_account.is_null() {
        found.push(one(Why::Unasked));
    }
    found
}

/// Kind, namespace and name.
fn named(object: &Value) -> String {
    let metadata = &object["metadata"];
    let parts = [metadata["namespace"].as_str(), metadata["name"].as_str()];
    let name = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
    let kind = object["kind"].as_str().unwrap_or("an object without `kind`");
    format!("{kind} {name}").trim_end().to_owned()
}

/// The files that were left out of a directory: each that has an annotation about roles, and one line on the others. A text that is
/// no manifest by its name may only speak of annotations.
pub(super) fn of_files(dir: &Path, files: &[PathBuf], keys: &AnnotationKeys) -> Vec<Skipped> {
    let mut found = Vec::new();
    let mut others = Vec::new();
    for file in files {
        let name = file
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .to_ascii_lowercase();
        let may_be_manifest =
            !name.contains('.') || ["yaml", "yml", "json"].iter().any(|word| name.contains(word));
        let text = beginning(file).unwrap_or_default();
        match keys_of_roles(keys).into_iter().find(|key| names(&text, key)) {
            Some(key) => found.push(Skipped {
                place: file.display().to_string(),
                object: String::new(),
                why: Why::File {
                    key: key.to_owned(),
                    may_be_manifest,
                },
            }),
            None => others.push((!may_be_manifest, file.strip_prefix(dir).unwrap_or(file))),
        }
    }
    // Those that may be manifests first.
    others.sort();
    if !others.is_empty() {
        found.push(Skipped {
            place: dir.display().to_string(),
            object: String::new(),
            why: Why::Files(
                others
                    .iter()
                    .map(|(_, file)| file.display().to_string())
                    .collect(),
            ),
        });
    }
    found
}

/// The first MiB of a file as text; no manifest is longer.
fn beginning(file: &Path) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(1024 * 1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Skipped {
    /// Whether it asks for a role, by what is in it: then nobody can tell whether a pod gets that.
    pub fn is_bad(&self) -> bool {
        match &self.why {
            Why::NoTemplate(key) => key.is_some(),
            Why::Unread(_) => true,
            Why::Unasked | Why::Files(_) => false,
            Why::File { may_be_manifest, .. } => *may_be_manifest,
        }
    }
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (place, object) = (&self.place, &self.object);
        let line = match &self.why {
            Why::NoTemplate(Some(key)) => format!(
                "{place}: {object} has {key}, but no pod template that could be explained; give the pods that it makes, or the \
                 manifests that become of it (`helm template`, `kubectl kustomize`)"
            ),
            Why::NoTemplate(None) => format!("{place}: {object} was skipped: no pod template is in it"),
            Why::Unread(Occurrence {
                key,
                path,
                in_text: true,
            }) => format!(
                "{place}: {object} has {key} in the text at {path}, which is not read; give that text as a manifest of its own"
            ),
            Why::Unread(Occurrence { key, path, .. }) => format!(
                "{place}: {object} has {key} at {}, where nobody reads it: it belongs to {}",
                if path.is_empty() { "its top" } else { path.as_str() },
                if key == web_identity::ROLE_KEY {
                    "metadata.annotations of a service account"
                } else {
                    "metadata.annotations of a pod, or of a pod template (such as spec.template.metadata.annotations)"
                }
            ),
            Why::Unasked => format!(
                "{place}: {object} has {}, but service accounts are not asked: --web-identity=on does that, unless IRSA's webhook \
                 serves its pods",
                web_identity::ROLE_KEY
            ),
            Why::File { key, .. } => format!(
                "{place} has {key}, but was left out: its name does not end with .yaml, .yml or .json"
            ),
            Why::Files(files) => {
                let more = files.len().saturating_sub(MAX_SHOWN_FILES);
                let shown = files[..files.len().min(MAX_SHOWN_FILES)].join(", ");
                let and = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                format!(
                    "{place}: left out, as their names do not end with .yaml, .yml or .json: {shown}{and}"
                )
            }
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
