//! The flags of `metaproxy migrate`.

use std::path::PathBuf;

use clap::Args;

use crate::migrate;

/// The arguments of `metaproxy migrate`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0; 64 on bad usage; 69 where a manifest has nothing to move, or cannot be \
                        read.\n\nExamples:\n  kubectl -n kube-system get daemonset kube2iam -o yaml | metaproxy migrate kube2iam > values.yaml\n  \
                        metaproxy migrate kiam agent.yaml server.yaml\n  metaproxy migrate kube2iam -- --base-role-arn=... --iptables=true"
)]
pub struct MigrateArgs {
    /// Where you come from
    pub from: migrate::SourceSoftware,

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
