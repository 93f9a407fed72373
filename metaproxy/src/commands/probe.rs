//! `metaproxy probe`: checks the health of the agent in this container for the kubelet.

use std::process::ExitCode;

use crate::admin::probe;
use crate::cli::ProbeArgs;

/// Runs `metaproxy probe`. If the probe fails, the kubelet shows the output in an event.
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
