//! Explanations from manifests alone: no agent, no cluster. Templates of workloads count as the pods that they make, whatever
//! the kind is called.

mod files;
mod occurrences;
mod skipped;
mod taken;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use thiserror::Error;

use self::files::{Files, files};
pub use self::skipped::Skipped;
use self::taken::Taken;
use super::{Explanation, Subject, Verdict};
use crate::commands::migrate::text_of;
use crate::pods::manifests::parse::objects;
use crate::pods::templates::Template;
use crate::pods::{Namespace, Pod, ServiceAccount};
use crate::roles::{Reason, Rules};

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
    #[error(
        "--manifests {path}: no pod in it, and nothing that makes one{}",
        lines(skipped)
    )]
    NoPods {
        /// Which file or directory.
        path: PathBuf,
        /// What is in it.
        skipped: Vec<Skipped>,
    },
    /// Another pod was asked for.
    #[error("--manifests: no pod {wanted}; there {}", are(.found))]
    NotThere {
        /// `namespace/name`
        wanted: String,
        /// Those that are there.
        found: Vec<String>,
    },
}

fn lines(skipped: &[Skipped]) -> String {
    skipped.iter().map(|one| format!("\n{one}")).collect()
}

fn are(found: &[String]) -> String {
    match found {
        [one] => format!("is {one}"),
        more => format!("are {}", more.join(", ")),
    }
}

/// What is found in manifests.
#[derive(Debug, Default)]
pub struct Explained {
    /// Of each pod and pod template.
    pub explanations: Vec<Explanation>,
    /// Objects that were left out and may make pods, annotations that nobody reads, and files that were left out.
    pub skipped: Vec<Skipped>,
}

/// Everything that counts of a set of manifests.
#[derive(Debug, Default)]
struct ManifestObjects {
    /// Pods, each with what its workload has to say.
    pods: Vec<(Pod, Vec<String>)>,
    namespaces: BTreeMap<String, Namespace>,
    accounts: BTreeMap<(String, String), ServiceAccount>,
    skipped: Vec<Skipped>,
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
) -> Result<Explained, OfflineError> {
    let mut found = ManifestObjects::default();
    let Files { read, left_out } = files(path)?;
    for file in read {
        let broken = |problem: String| OfflineError::Broken {
            path: file.clone(),
            line_and_problem: problem,
        };
        let text = text_of(&file).map_err(|source| OfflineError::Unreadable {
            path: file.clone(),
            source,
        })?;
        for (line, object) in objects(&text).map_err(|error| broken(error.to_string()))? {
            let taken = Taken::of(&object);
            found
                .add(rules, &object, &taken, namespace)
                .map_err(|problem| broken(format!("{line}: {problem}")))?;
            let place = format!("{}:{line}", file.display());
            found.skipped.extend(skipped::of(&place, &object, &taken, rules));
        }
    }
    found
        .skipped
        .extend(skipped::of_files(path, &left_out, &rules.keys));
    if found.pods.is_empty() {
        return Err(OfflineError::NoPods {
            path: path.to_owned(),
            skipped: found.skipped,
        });
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
    Ok(Explained {
        explanations,
        skipped: found.skipped,
    })
}

impl ManifestObjects {
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
        if explanation.verdict == Verdict::Waiting {
            explanation.verdict = Verdict::Unknown;
            explanation.because = missing(decision.reason());
        }
        explanation.suspicious |= !notes.is_empty();
        explanation.hints.extend_from_slice(notes);
        explanation
    }

    /// Takes an object.
    fn add(
        &mut self,
        rules: &Rules,
        object: &Value,
        taken: &Taken<'_>,
        namespace: &str,
    ) -> Result<(), String> {
        let metadata = with_namespace(&object["metadata"], namespace)?;
        match taken {
            Taken::Pod(pod) => self.add_pod(metadata, pod.spec.clone(), Vec::new())?,
            Taken::Namespace => {
                let of = Namespace::from_api(parsed(metadata)?).map_err(|problem| problem.to_string())?;
                self.namespaces.insert(of.name.clone(), of);
            }
            Taken::Account => {
                let of =
                    ServiceAccount::from_api(parsed(metadata)?).map_err(|problem| problem.to_string())?;
                self.accounts.insert((of.namespace.clone(), of.name.clone()), of);
            }
            Taken::Templates(found) => {
                for (number, template) in found.iter().enumerate() {
                    let mut metadata = metadata.clone();
                    if found.len() > 1 {
                        let name = metadata["name"].as_str().unwrap_or("pod");
                        metadata["name"] = json!(format!("{name}-{}", number + 1));
                    }
                    self.add_template(rules, &metadata, *template)?;
                }
            }
        }
        Ok(())
    }

    fn add_template(
        &mut self,
        rules: &Rules,
        metadata: &Value,
        template: Template<'_>,
    ) -> Result<(), String> {
        let of_template = template.metadata;
        let keys = &rules.keys;
        let own = |key: &String| !metadata["annotations"][key].is_null();
        let notes = [&keys.role, &keys.external_id, &keys.session_name]
            .into_iter()
            .filter(|key| own(key) && of_template["annotations"][*key].is_null())
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
            "annotations": of_template["annotations"],
            "labels": of_template["labels"],
        });
        self.add_pod(of_pod, template.spec.clone(), notes)
    }

    fn add_pod(&mut self, mut metadata: Value, spec: Value, notes: Vec<String>) -> Result<(), String> {
        if metadata["name"].is_null() {
            metadata["name"] = metadata["generateName"].clone();
        }
        check_texts(&mut metadata)?;
        // Of no consequence here, but no pod is without one.
        metadata["uid"] = json!(format!("manifest-{}", self.pods.len()));
        let pod = parsed(json!({ "metadata": metadata, "spec": spec }))?;
        let pod = Pod::from_api(pod).map_err(|problem| problem.to_string())?;
        self.pods.push((pod, notes));
        Ok(())
    }
}

/// Why manifests don't tell what an agent would wait for.
fn missing(reason: &Reason) -> String {
    match reason {
        Reason::NamespaceUnknown { namespace } => format!(
            "namespace {namespace} is in none of the manifests, and --namespace-policy=required asks it which roles its pods may have"
        ),
        Reason::ServiceAccountUnknown { account } => format!(
            "service account {account} is in none of the manifests, and --web-identity=on asks it for its pods' role"
        ),
        Reason::BaseUnknown { role } => format!(
            "role {role:?} is a name, and no --base-role-arn tells the account in which it is looked for; an agent finds out its \
             node's"
        ),
        other => other.to_string(),
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
    check_texts(&mut metadata)?;
    Ok(metadata)
}

/// Annotations and labels are text, and Kubernetes takes nothing else; one that is null it takes for an empty one.
fn check_texts(metadata: &mut Value) -> Result<(), String> {
    for (what, texts) in [("annotation", "annotations"), ("label", "labels")] {
        for (key, value) in metadata[texts].as_object_mut().into_iter().flatten() {
            let kind = match value {
                Value::String(_) => continue,
                Value::Null => {
                    *value = json!("");
                    continue;
                }
                Value::Bool(_) => "true or false",
                Value::Number(_) => "a number",
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
            };
            return Err(format!(
                "{what} {key} is {kind}, and Kubernetes takes only text there: put its value in quotation marks"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
