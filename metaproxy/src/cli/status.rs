//! The flags of `metaproxy status`.

use std::time::Duration;

use clap::Args;

use super::agent::AgentArgs;
use super::values;

/// The arguments of `metaproxy status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 if pods are served; 1 if they are not; 64 on bad usage; 69 if no agent answers.\n\n\
                  Examples:\n  kubectl -n kube-system exec ds/metaproxy -- /metaproxy status\n  metaproxy status --watch 5s --output json"
)]
pub struct StatusArgs {
    /// Repeat the output at this interval
    #[arg(
        long, value_name = "DURATION", num_args = 0..=1, default_missing_value = "2s",
        value_parser = values::a_second_to_an_hour
    )]
    pub watch: Option<Duration>,

    /// The agent that is asked.
    #[command(flatten)]
    pub agent: AgentArgs,
}
