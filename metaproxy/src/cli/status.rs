//! The flags of `metaproxy status`.

use std::time::Duration;

use clap::Args;

use super::agent::AgentArgs;
use super::values;

/// The arguments of `metaproxy status`.
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
