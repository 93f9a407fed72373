//! The commands for people. What they find goes to standard output, what is in their way to standard error.

use std::io::{self, Write as _};
use std::process::ExitCode;

use serde::Serialize;

use crate::admin::asking::{self, AskError};
use crate::cli::{AgentArgs, DoctorArgs, ExplainArgs, Output, StatusArgs, UsageError};
use crate::doctor::{self, Examination};
use crate::explain::{Explanation, offline, table};
use crate::status::Status;

/// Exit status where nobody can be asked (EX_UNAVAILABLE of sysexits.h).
pub const EX_UNAVAILABLE: u8 = 69;

/// Exit status where something is wrong with what was asked about.
pub const EX_BAD: u8 = 1;

/// `metaproxy explain`
///
/// # Errors
/// Flags that make no sense.
pub fn explain(args: &ExplainArgs) -> Result<ExitCode, UsageError> {
    let wanted = args.pod();
    let found = match &args.manifests {
        Some(path) => {
            let rules = args.roles.rules(None, false)?;
            offline::explain(&rules, path, &args.namespace, wanted.as_deref())
                .map_err(|error| error.to_string())
        }
        None => asking::explain(&args.agent.runtime_dir, wanted.as_deref())
            .map_err(|error| error.to_string())
            .and_then(|found| known(&args.agent, wanted.as_deref(), found)),
    };
    let found = match found {
        Ok(found) => found,
        Err(error) => return Ok(unavailable(&error)),
    };
    let is_single = wanted.is_some();
    match args.agent.output {
        Output::Json if is_single => print_json(&found.first()),
        Output::Json => print_json(&found),
        Output::Text if args.all && args.manifests.is_none() => print(&table(&found)),
        Output::Text => {
            let texts: Vec<String> = found.iter().map(ToString::to_string).collect();
            print(&texts.join("\n"));
        }
    }
    Ok(verdict(found.iter().any(Explanation::is_bad)))
}

/// What the agent knows, where that is anything.
fn known(
    agent: &AgentArgs,
    wanted: Option<&str>,
    found: Vec<Explanation>,
) -> Result<Vec<Explanation>, String> {
    let Some(wanted) = wanted.filter(|_| found.is_empty()) else {
        return Ok(found);
    };
    let node = asking::status(&agent.runtime_dir)
        .ok()
        .and_then(|status| status.node);
    let node = node.map_or_else(|| "its node".to_owned(), |node| format!("node {node}"));
    let (namespace, name) = wanted.split_once('/').unwrap_or(("default", wanted));
    Err(format!(
        "no pod {wanted} is known to the agent here, which serves the pods of {node}; `kubectl -n {namespace} get pod {name} \
         -o wide` tells the pod's node, and the agent there is the one to ask"
    ))
}

/// `metaproxy status`
pub fn status(args: &StatusArgs) -> ExitCode {
    loop {
        let told = asking::status(&args.agent.runtime_dir);
        if args.watch.is_some() {
            // Home, and everything below it cleared (ECMA-48).
            print("\x1b[H\x1b[2J");
        }
        let code = shown(&args.agent, told);
        let Some(pause) = args.watch else {
            return code;
        };
        std::thread::sleep(pause);
    }
}

fn shown(agent: &AgentArgs, told: Result<Status, AskError>) -> ExitCode {
    match told {
        Ok(status) => {
            match agent.output {
                Output::Text => print(&status.to_string()),
                Output::Json => print_json(&status),
            }
            verdict(!status.ready)
        }
        Err(error) => unavailable(&error.to_string()),
    }
}

/// `metaproxy doctor`
pub async fn doctor(args: &DoctorArgs, examination: &Examination) -> ExitCode {
    if args.fix_leftovers {
        return fix_leftovers();
    }
    let report = doctor::examine(examination).await;
    match args.agent.output {
        Output::Text => print(&report.to_string()),
        Output::Json => print_json(&report),
    }
    report.exit_code()
}

fn fix_leftovers() -> ExitCode {
    let leftovers = doctor::leftovers();
    if leftovers.is_empty() {
        print("nothing of kube2iam, kiam or the EKS Pod Identity agent is left on this node\n");
        return ExitCode::SUCCESS;
    }
    for one in &leftovers {
        print(&format!("{}\n  {}\n", one.what, one.command()));
    }
    let mut failed = false;
    for one in &leftovers {
        match one.remove() {
            Ok(()) => print(&format!("removed: {}\n", one.what)),
            Err(error) => {
                failed = true;
                eprintln!("error: not removed: {}: {error}", one.command());
            }
        }
    }
    verdict(failed)
}

fn verdict(is_bad: bool) -> ExitCode {
    ExitCode::from(if is_bad { EX_BAD } else { 0 })
}

fn unavailable(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EX_UNAVAILABLE)
}

/// Whoever reads may have stopped to, as `head` does.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

pub(crate) fn print_json(value: &impl Serialize) {
    // Plain data, which always serialises.
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    print(&format!("{text}\n"));
}
