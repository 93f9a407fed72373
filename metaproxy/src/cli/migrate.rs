//! The flags of `metaproxy migrate`.

use std::path::PathBuf;

use clap::Args;

use crate::migrate;

/// The arguments of `metaproxy migrate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if values were written; 64 on bad usage; 69 if a manifest cannot be read, or has nothing to \
                  convert.\n\nExamples:\n  kubectl -n kube-system get daemonset kube2iam -o yaml | metaproxy migrate kube2iam > values.yaml\n  \
                  metaproxy migrate kiam agent.yaml server.yaml\n  metaproxy migrate kube2iam -- --base-role-arn=... --iptables=true"
)]
pub struct MigrateArgs {
    /// Software that is replaced
    pub from: migrate::SourceSoftware,

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
