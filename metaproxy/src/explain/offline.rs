//! Explains the pods of manifests without an agent or a cluster. A pod template counts as the pod that it makes, in
//! objects of any kind.

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
use crate::input::read_text;
use crate::pods::manifests::parse::objects;
use crate::pods::templates::Template;
use crate::pods::{Namespace, Pod, ServiceAccount};
use crate::roles::{Reason, Rules};

/// The reason why manifests can't be explained.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A file or directory can't be read.
    #[error("--manifests {path}: {source}")]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A file can't be parsed, or an object in it is malformed.
    #[error("{path}:{line_and_problem}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// The line and the problem.
        line_and_problem: String,
    },
    /// The manifests have neither a pod nor a pod template.
    #[error(
        "--manifests {path}: found neither a pod nor a pod template{}",
        lines(skipped)
    )]
    NoPods {
        /// The file or directory.
        path: PathBuf,
        /// The skipped parts of the manifests.
        skipped: Vec<Skipped>,
    },
    /// The manifests do not have the wanted pod.
    #[error("--manifests: no pod or pod template is named {wanted}; there {}", are(.found))]
    NotThere {
        /// `namespace/name`
        wanted: String,
        /// The names of the pods and pod templates in the manifests.
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

/// The explanations of a set of manifests.
#[derive(Debug, Default)]
pub struct Explained {
    /// One explanation for each pod and pod template.
    pub explanations: Vec<Explanation>,
    /// Skipped objects that may make pods, annotations that are not read, and skipped files.
    pub skipped: Vec<Skipped>,
}

/// The objects of a set of manifests that decide about roles.
#[derive(Debug, Default)]
struct ManifestObjects {
    /// Pods, each with hints from its workload.
    pods: Vec<(Pod, Vec<String>)>,
    namespaces: BTreeMap<String, Namespace>,
    accounts: BTreeMap<(String, String), ServiceAccount>,
    skipped: Vec<Skipped>,
}

/// Explains each pod of the manifests at `path`, or only the pod `wanted`. Objects without a namespace are in
/// `namespace`.
///
/// # Errors
/// If there is nothing to explain, or a manifest can't be read.
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
        let text = read_text(&file).map_err(|source| OfflineError::Unreadable {
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
        // Every namespace has the service account `default`, although manifests do not define it.
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

    /// Adds an object.
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
                    "annotation {key} of the workload is not read; move it to the pod template \
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
        // Every pod needs a UID, but manifests have none.
        metadata["uid"] = json!(format!("manifest-{}", self.pods.len()));
        let pod = parsed(json!({ "metadata": metadata, "spec": spec }))?;
        let pod = Pod::from_api(pod).map_err(|problem| problem.to_string())?;
        self.pods.push((pod, notes));
        Ok(())
    }
}

/// Says which object or flag is missing for a decision. An agent would wait in this case.
fn missing(reason: &Reason) -> String {
    match reason {
        Reason::NamespaceUnknown { namespace } => format!(
            "namespace {namespace} is in none of the manifests, and with --namespace-policy=required it decides which roles its pods may have; add it"
        ),
        Reason::ServiceAccountUnknown { account } => format!(
            "service account {account} is in none of the manifests, and with --web-identity=on it may give its pods a role; add it"
        ),
        Reason::BaseUnknown { role } => format!(
            "role {role:?} is a name, and its account is not known; set --base-role-arn (an agent takes the account of its node's \
             role)"
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
        _ => return Err("metadata is not an object".to_owned()),
    };
    if metadata["namespace"].is_null() {
        metadata["namespace"] = json!(namespace);
    }
    check_texts(&mut metadata)?;
    Ok(metadata)
}

/// Checks that annotations and labels are text, as Kubernetes requires. Null becomes an empty text, as in Kubernetes.
fn check_texts(metadata: &mut Value) -> Result<(), String> {
    for (what, texts) in [("annotation", "annotations"), ("label", "labels")] {
        for (key, value) in metadata[texts].as_object_mut().into_iter().flatten() {
            let kind = match value {
                Value::String(_) => continue,
                Value::Null => {
                    *value = json!("");
                    continue;
                }
                Value::Bool(_) => "a boolean",
                Value::Number(_) => "a number",
                Value::Array(_) => "a list",
                Value::Object(_) => "an object",
            };
            return Err(format!(
                "{what} {key} is {kind}, and Kubernetes accepts only text there: put its value in quotation marks"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
