//! The flags of the commands for people.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::roles::RoleArgs;
use super::{UsageError, values};
use crate::migrate;

/// `--output`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// To read
    Text,
    /// JSON, for programs
    Json,
}

/// Where the agent is found.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Directory of the agent's socket
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy"
    )]
    pub runtime_dir: PathBuf,

    /// Form of what is printed
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub output: Output,
}

/// `metaproxy explain`
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
    /// The pod's name in full; `None` for all pods.
    ///
    /// # Errors
    /// Where no pod is named and all are not asked for, or a name is none.
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

/// `metaproxy status`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 where pods are served; 1 where they are not; 64 on bad usage; 69 where no agent answers.\n\n\
                  Examples:\n  kubectl -n kube-system exec ds/metaproxy -- /metaproxy status\n  metaproxy status --watch 5s --output json"
)]
pub struct StatusArgs {
    /// Show it again and again, this often
    #[arg(
        long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2s",
        value_parser = values::a_second_to_an_hour
    )]
    pub watch: Option<Duration>,

    /// Whom to ask.
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// `metaproxy migrate`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0; 64 on bad usage; 69 where a manifest has nothing to move, or cannot be \
                        read.\n\nExamples:\n  kubectl -n kube-system get daemonset kube2iam -o yaml | metaproxy migrate kube2iam > values.yaml\n  \
                        metaproxy migrate kiam agent.yaml server.yaml\n  metaproxy migrate kube2iam -- --base-role-arn=... --iptables=true"
)]
pub struct MigrateArgs {
    /// Where you come from
    pub from: migrate::From,

    /// Manifests of its DaemonSet (and kiam's server) [default: standard input]
    #[arg(value_name = "FILE")]
    pub manifests: Vec<PathBuf>,

    /// Its command line, in place of manifests
    #[arg(
        last = true,
        value_name = "FLAGS",
        conflicts_with = "manifests",
        allow_hyphen_values = true
    )]
    pub words: Vec<String>,
}

/// `metaproxy completions`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  metaproxy completions bash > /etc/bash_completion.d/metaproxy")]
pub struct CompletionsArgs {
    /// For which shell
    pub shell: clap_complete::Shell,
}
