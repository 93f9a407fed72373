//! The flags of `metaproxy migrate`.

use std::path::PathBuf;

use clap::Args;

/// The arguments of `metaproxy migrate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if values were written; 64 on bad usage; 69 if a manifest cannot be read, or has nothing to \
                  convert.\n\nExamples:\n  kubectl -n kube-system get daemonset kube2iam -o yaml | metaproxy migrate kube2iam > values.yaml\n  \
                  metaproxy migrate kiam agent.yaml server.yaml\n  metaproxy migrate kube2iam -- --base-role-arn=... --iptables=true"
)]
pub struct MigrateArgs {
    /// Software that is replaced
    pub from: SourceSoftware,

    /// Manifests of its DaemonSet, and of kiam's server [default: standard input]
    #[arg(value_name = "FILE")]
    pub manifests: Vec<PathBuf>,

    /// Its command line, instead of manifests
    #[arg(
        last = true,
        value_name = "FLAGS",
        conflicts_with = "manifests",
        allow_hyphen_values = true
    )]
    pub flags: Vec<String>,
}

/// The software whose configuration is moved to metaproxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceSoftware {
    /// kube2iam, from its DaemonSet
    Kube2iam,
    /// kiam, from its agent's DaemonSet and its server's DaemonSet or Deployment
    Kiam,
}

impl SourceSoftware {
    /// Returns the software's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kube2iam => "kube2iam",
            Self::Kiam => "kiam",
        }
    }
}
