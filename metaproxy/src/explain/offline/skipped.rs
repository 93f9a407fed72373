//! Reports the skipped parts of manifests: objects, files, and annotations that are not read.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::occurrences::{Occurrence, keys_of_roles, names, unread};
use super::taken::Taken;
use crate::explain::printable;
use crate::roles::{AnnotationKeys, Rules, web_identity};

/// A part of the manifests that was skipped, although it may have been meant to give a pod a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The file and line.
    place: String,
    /// Kind, namespace and name of the object; empty for a file.
    object: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    /// The object may make pods, and no pod template was found in it. The text is an annotation about roles that is
    /// in it.
    NoTemplate(Option<String>),
    /// An annotation about roles is in a place that is not read.
    Unread(Occurrence),
    /// A service account gives a role, and annotations of service accounts are not read.
    Unasked,
    /// A file with another ending has an annotation about roles. Its name says whether it may be a manifest.
    File { key: String, may_be_manifest: bool },
    /// Files with other endings, without such an annotation.
    Files(Vec<String>),
}

/// Kinds of Kubernetes itself that make no pods.
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

/// The maximum number of skipped files that are shown by name.
const MAX_SHOWN_FILES: usize = 8;

/// Returns the skipped parts of an object.
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
    // An event quotes annotations of other objects.
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

/// Returns kind, namespace and name of an object.
fn named(object: &Value) -> String {
    let metadata = &object["metadata"];
    let parts = [metadata["namespace"].as_str(), metadata["name"].as_str()];
    let name = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
    let kind = object["kind"].as_str().unwrap_or("an object without `kind`");
    format!("{kind} {name}").trim_end().to_owned()
}

/// Reports the skipped files of a directory: each file that has an annotation about roles, and one line on the
/// others.
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
    // Files that may be manifests come first.
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

/// Reads the first MiB of a file as text; no manifest is longer.
fn beginning(file: &Path) -> io::Result<String> {
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    File::open(file)?.take(1024 * 1024).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

impl Skipped {
    /// Says whether it seems to request a role, so that the explanations may be incomplete.
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
                "{place}: {object} has {key}, but no pod template that can be explained; pass the pods that it makes, or rendered \
                 manifests (`helm template`, `kubectl kustomize`)"
            ),
            Why::NoTemplate(None) => format!("{place}: {object} was skipped, as it has no pod template"),
            Why::Unread(Occurrence {
                key,
                path,
                in_text: true,
            }) => format!(
                "{place}: {object} has {key} in the text at {path}, which is not read; pass that text as a manifest of its own"
            ),
            Why::Unread(Occurrence { key, path, .. }) => format!(
                "{place}: {object} has {key} at {}, which is not read; move it to {}",
                if path.is_empty() { "its top" } else { path.as_str() },
                if key == web_identity::ROLE_KEY {
                    "metadata.annotations of a service account"
                } else {
                    "metadata.annotations of a pod, or of a pod template (such as spec.template.metadata.annotations)"
                }
            ),
            Why::Unasked => format!(
                "{place}: {object} has {}, which is read with --web-identity=on only; ignore this if IRSA's webhook serves its pods",
                web_identity::ROLE_KEY
            ),
            Why::File { key, .. } => {
                format!("{place} has {key}, but was skipped: its name does not end with .yaml, .yml or .json")
            }
            Why::Files(files) => {
                let more = files.len().saturating_sub(MAX_SHOWN_FILES);
                let shown = files[..files.len().min(MAX_SHOWN_FILES)].join(", ");
                let and = if more > 0 {
                    format!(" and {more} more")
                } else {
                    String::new()
                };
                format!("{place}: skipped, as their names do not end with .yaml, .yml or .json: {shown}{and}")
            }
        };
        f.write_str(&printable(&line))
    }
}

/// Says whether a value holds a key, or a text with the key.
fn has(value: &Value, key: &str) -> bool {
    match value {
        Value::Object(map) => map.iter().any(|(name, value)| name == key || has(value, key)),
        Value::Array(items) => items.iter().any(|value| has(value, key)),
        Value::String(text) => text.contains(key),
        _ => false,
    }
}
