//! The flags of the commands that query an agent.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The values of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Text for readers
    Text,
    /// JSON, for programs
    Json,
}

/// The flags that find the agent and format its answer.
#[derive(Clone, Debug, Args)]
pub struct AgentArgs {
    /// Runtime directory of the agent, which has its socket
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy"
    )]
    pub runtime_dir: PathBuf,

    /// Format of the output
    #[arg(long, value_name = "FORM", default_value = "text")]
    pub output: Output,
}
