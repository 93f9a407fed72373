//! `metaproxy status`: shows the state of this node's agent.

use std::process::ExitCode;

use super::output::{print, print_json, unavailable, verdict};
use crate::admin::client::{self, ClientError};
use crate::cli::{AgentArgs, Output, StatusArgs};
use crate::introspection::Status;
use crate::terminal::fit_to_terminal;

/// Runs `metaproxy status`.
pub fn run(args: &StatusArgs) -> ExitCode {
    loop {
        let answer = client::status(&args.agent.runtime_dir);
        if args.watch.is_some() {
            // This sequence moves the cursor home and clears the screen (ECMA-48).
            print("\x1b[H\x1b[2J");
        }
        let code = show(&args.agent, answer);
        let Some(pause) = args.watch else {
            return code;
        };
        std::thread::sleep(pause);
    }
}

fn show(agent: &AgentArgs, answer: Result<Status, ClientError>) -> ExitCode {
    match answer {
        Ok(status) => {
            match agent.output {
                Output::Text => print(&fit_to_terminal(&status.to_string())),
                Output::Json => print_json(&status),
            }
            verdict(!status.ready)
        }
        Err(error) => unavailable(&error.to_string()),
    }
}
