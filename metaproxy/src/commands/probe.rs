//! `metaproxy probe`: the kubelet's question to the agent of this container.

use std::process::ExitCode;

use crate::admin::probe;
use crate::cli::ProbeArgs;

/// Runs `metaproxy probe`. The kubelet shows what it prints in an event if the probe fails.
pub fn run(args: &ProbeArgs) -> ExitCode {
    match probe::ask(args.question, &args.runtime_dir) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
