//! Explanations from manifests alone: no agent, no cluster. Templates of workloads count as the pods that they make.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use super::{Explanation, Subject};
use crate::people::text_of;
use crate::pods::manifests::parse::objects;
use crate::pods::{Namespace, Pod, ServiceAccount};
use crate::roles::Rules;

/// Why manifests can't be explained.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// Not read.
    #[error("--manifests {path}: {source}")]
    Unreadable {
        /// Which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Not understood.
    #[error("{path}:{line_and_problem}")]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Where, and what.
        line_and_problem: String,
    },
    /// Nothing to explain.
    #[error("--manifests {0}: no pod in it, and nothing that makes one")]
    NoPods(PathBuf),
    /// Another pod was asked for.
    #[error("--manifests: no pod {wanted}; there {}", are(.found))]
    NotThere {
        /// `namespace/name`
        wanted: String,
        /// Those that are there.
        found: Vec<String>,
    },
}

fn are(found: &[String]) -> String {
    match found {
        [one] => format!("is {one}"),
        more => format!("are {}", more.join(", ")),
    }
}

/// What makes pods by a template at `spec.template`.
const WORKLOADS: [&str; 6] = [
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Job",
];

/// Everything that counts of a set of manifests.
#[derive(Debug, Default)]
struct Found {
    /// Pods, each with what its workload has to say.
    pods: Vec<(Pod, Vec<String>)>,
    namespaces: BTreeMap<String, Namespace>,
    accounts: BTreeMap<(String, String), ServiceAccount>,
}

/// Explains each pod of manifests, or one.
///
/// # Errors
/// Where there is nothing to explain, or something can't be read.
pub fn explain(
    rules: &Rules,
    path: &Path,
    namespace: &str,
    wanted: Option<&str>,
) -> Result<Vec<Explanation>, OfflineError> {
    let mut found = Found::default();
    for file in files(path)? {
        let broken = |problem: String| OfflineError::Broken {
            path: file.clone(),
            line_and_problem: problem,
        };
        let text = text_of(&file).map_err(|source| OfflineError::Unreadable {
            path: file.clone(),
            source,
        })?;
        for (line, object) in objects(&text).map_err(|error| broken(error.to_string()))? {
            found
                .add(rules, object, namespace)
                .map_err(|problem| broken(format!("{line}: {problem}")))?;
        }
    }
    if found.pods.is_empty() {
        return Err(OfflineError::NoPods(path.to_owned()));
    }
    let mut explanations: Vec<Explanation> = found
        .pods
        .iter()
        .map(|(pod, notes)| found.one(rules, pod, notes))
        .collect();
    if let Some(wanted) = wanted {
        let names = explanations.iter().map(|one| one.pod.clone()).collect();
        explanations.retain(|one| one.pod == wanted);
        if explanations.is_empty() {
            return Err(OfflineError::NotThere {
                wanted: wanted.to_owned(),
                found: names,
            });
        }
    }
    Ok(explanations)
}

impl Found {
    fn one(&self, rules: &Rules, pod: &Pod, notes: &[String]) -> Explanation {
        let account = (pod.namespace.clone(), pod.service_account.clone());
        // An account that is in no manifest, and is not asked for by name, is the one that every namespace has.
        let plain = ServiceAccount {
            namespace: account.0.clone(),
            name: account.1.clone(),
            annotations: BTreeMap::new(),
        };
        let known = self.accounts.get(&account);
        let subject = Subject {
            pod,
            namespace: self.namespaces.get(&pod.namespace),
            account: known.or((plain.name == "default").then_some(&plain)),
        };
        let decision = rules.resolve_pod(pod, subject.namespace, subject.account);
        let mut explanation = Explanation::of(rules, &subject, &decision);
        explanation.add_hints(rules, &subject, &decision);
        explanation.uid = None;
        explanation.suspicious |= !notes.is_empty();
        explanation.hints.extend_from_slice(notes);
        explanation
    }

    fn add(&mut self, rules: &Rules, object: Value, namespace: &str) -> Result<(), String> {
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        let version = object["apiVersion"].as_str().unwrap_or("v1").to_owned();
        let metadata = with_namespace(&object["metadata"], namespace)?;
        match kind.as_str() {
            "Pod" if version == "v1" => self.add_pod(metadata, object["spec"].clone(), Vec::new()),
            "Namespace" if version == "v1" => {
                let of = Namespace::from_api(parsed(metadata)?).map_err(|problem| problem.to_string())?;
                self.namespaces.insert(of.name.clone(), of);
                Ok(())
            }
            "ServiceAccount" if version == "v1" => {
                let of =
                    ServiceAccount::from_api(parsed(metadata)?).map_err(|problem| problem.to_string())?;
                self.accounts.insert((of.namespace.clone(), of.name.clone()), of);
                Ok(())
            }
            "CronJob" => self.add_template(
                rules,
                metadata,
                &object["spec"]["jobTemplate"]["spec"]["template"],
            ),
            workload if WORKLOADS.contains(&workload) => {
                self.add_template(rules, metadata, &object["spec"]["template"])
            }
            _ => Ok(()),
        }
    }

    fn add_template(&mut self, rules: &Rules, metadata: Value, template: &Value) -> Result<(), String> {
        let keys = &rules.keys;
        let own = |key: &String| !metadata["annotations"][key].is_null();
        let notes = [&keys.role, &keys.external_id, &keys.session_name]
            .into_iter()
            .filter(|key| own(key) && template["metadata"]["annotations"][*key].is_null())
            .map(|key| {
                format!(
                    "annotation {key} stands on the workload, where nobody reads it: it belongs to its pod template \
                     (spec.template.metadata.annotations)"
                )
            })
            .collect();
        let of_pod = json!({
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "annotations": template["metadata"]["annotations"],
        });
        self.add_pod(of_pod, template["spec"].clone(), notes)
    }

    fn add_pod(&mut self, mut metadata: Value, spec: Value, notes: Vec<String>) -> Result<(), String> {
        if metadata["name"].is_null() {
            metadata["name"] = metadata["generateName"].clone();
        }
        // Of no consequence here, but no pod is without one.
        metadata["uid"] = json!(format!("manifest-{}", self.pods.len()));
        let pod = parsed(json!({ "metadata": metadata, "spec": spec }))?;
        let pod = Pod::from_api(pod).map_err(|problem| problem.to_string())?;
        self.pods.push((pod, notes));
        Ok(())
    }
}

fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

fn with_namespace(metadata: &Value, namespace: &str) -> Result<Value, String> {
    let mut metadata = match metadata {
        Value::Object(_) => metadata.clone(),
        Value::Null => json!({}),
        _ => return Err("metadata is no object".to_owned()),
    };
    if metadata["namespace"].is_null() {
        metadata["namespace"] = json!(namespace);
    }
    Ok(metadata)
}

/// The file itself, or all manifests below a directory.
fn files(path: &Path) -> Result<Vec<PathBuf>, OfflineError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |source| OfflineError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let is_manifest = entry
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if is_manifest {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
