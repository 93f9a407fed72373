//! The flags of `metaproxy completions`.

use clap::Args;

/// The arguments of `metaproxy completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  metaproxy completions bash > /etc/bash_completion.d/metaproxy")]
pub struct CompletionsArgs {
    /// Shell that reads the script
    pub shell: clap_complete::Shell,
}
