//! The flags of the commands that ask an agent.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// The values of `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// To read
    Text,
    /// JSON, for programs
    Json,
}

/// Says where the agent is found and how its answer is printed.
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
