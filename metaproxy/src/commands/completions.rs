//! `metaproxy completions`: prints a script that completes the command line in a shell.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::output::print;
use crate::cli::Cli;

/// Runs `metaproxy completions`.
pub fn run(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "metaproxy", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
