//! The flags of `metaproxy explain`.

use std::path::PathBuf;

use clap::Args;

use super::agent::AgentArgs;
use super::roles::RoleArgs;
use super::usage::UsageError;

/// The arguments of `metaproxy explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --output=json: one object where a pod is asked for by name, or an array where several have that name or \
                        none is given.\n\nExit status: 0 where nothing is wrong; 1 where a pod does not get a role that it \
                        seems to ask for, or cannot be explained although it asks for one, or an annotation that names a role stands where \
                        nobody reads it; 64 on bad usage; 69 where nobody can be asked.\n\n\
                  Examples:\n  kubectl -n kube-system exec ds/metaproxy -- /metaproxy explain apps/web\n  \
                  metaproxy explain --manifests k8s/ --all --base-role-arn arn:aws:iam::123456789012:role/"
)]
pub struct ExplainArgs {
    /// The pod, as NAMESPACE/POD
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,

    /// A table of all pods: of this node, or of the manifests
    #[arg(long, conflicts_with = "pod")]
    pub all: bool,

    /// Explain the pods, and templates of pods, of a manifest file, of a directory of them, or of standard input (-); by the
    /// flags below, with no agent and no cluster
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,

    /// Namespace of objects, or of a pod, that name none
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// Whom to ask, where no manifests are given.
    #[command(flatten)]
    pub agent: AgentArgs,

    /// What decides about manifests.
    #[command(flatten)]
    pub roles: RoleArgs,
}

impl ExplainArgs {
    /// Returns the pod's name with its namespace; `None` stands for all pods.
    ///
    /// # Errors
    /// If neither a pod nor all pods are asked for, or the name is not one of a pod.
    pub fn pod(&self) -> Result<Option<String>, UsageError> {
        let Some(pod) = &self.pod else {
            let is_enough = self.all || self.manifests.is_some();
            return if is_enough {
                Ok(None)
            } else {
                Err(UsageError::WhichPod)
            };
        };
        let (namespace, name) = pod.split_once('/').unwrap_or((&self.namespace, pod));
        if [namespace, name]
            .iter()
            .any(|part| part.is_empty() || part.contains('/'))
        {
            return Err(UsageError::PodName(pod.clone()));
        }
        Ok(Some(format!("{namespace}/{name}")))
    }
}
