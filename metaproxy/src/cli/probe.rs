//! The flags of `metaproxy probe`.

use std::path::PathBuf;

use clap::Args;

use crate::admin::probe::Probe;

/// The arguments of `metaproxy probe`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if the answer is yes; 1 if it is no, or if there is none; 64 on bad usage.\n\n\
                  Examples:\n  kubectl -n kube-system exec ds/metaproxy -- /metaproxy probe ready"
)]
pub struct ProbeArgs {
    /// The question
    pub question: Probe,

    /// Runtime directory of the agent or guard, which has its socket
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy"
    )]
    pub runtime_dir: PathBuf,
}
