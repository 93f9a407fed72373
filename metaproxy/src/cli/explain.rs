//! The flags of `metaproxy explain`.

use std::path::PathBuf;

use clap::Args;

use super::agent::AgentArgs;
use super::roles::RoleArgs;
use super::usage::UsageError;

/// The arguments of `metaproxy explain`.
#[derive(Debug, Args)]
#[command(
    after_help = "With --output=json: one object for a pod that is named; an array if several pods have that name, or no pod \
                  is named.\n\n\
                  Exit status: 0 if nothing is wrong; 1 if a pod does not get a role that it requests or seems to request, or cannot \
                  be explained, or an annotation that gives a role is in a place that is not read; 64 on bad usage; 69 if no agent \
                  answers, or the manifests cannot be read.\n\n\
                  Examples:\n  kubectl -n kube-system exec ds/metaproxy -- /metaproxy explain apps/web\n  \
                  metaproxy explain --manifests k8s/ --all --base-role-arn arn:aws:iam::123456789012:role/"
)]
pub struct ExplainArgs {
    /// The pod, as NAMESPACE/POD
    #[arg(value_name = "NAMESPACE/POD")]
    pub pod: Option<String>,

    /// Show a table of all pods of this node, or of the manifests
    #[arg(long, conflicts_with = "pod")]
    pub all: bool,

    /// Explain the pods and pod templates of a manifest file, a directory or standard input (-), by the flags below, without an agent
    /// or a cluster
    #[arg(long, value_name = "PATH")]
    pub manifests: Option<PathBuf>,

    /// Namespace of the pod, or of objects in manifests, if none is given
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    pub namespace: String,

    /// The agent that is asked, if no manifests are given.
    #[command(flatten)]
    pub agent: AgentArgs,

    /// The configuration by which manifests are explained.
    #[command(flatten)]
    pub roles: RoleArgs,
}

impl ExplainArgs {
    /// Returns the pod as `namespace/name`. `None` means all pods.
    ///
    /// # Errors
    /// If neither a pod nor all pods are requested, or the name is not a valid pod name.
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
