//! `metaproxy explain`: explains which role a pod gets, and why.

use std::process::ExitCode;

use super::output::{print, print_json, unavailable, verdict};
use crate::admin::client;
use crate::cli::{AgentArgs, ExplainArgs, Output, UsageError};
use crate::explain::offline::{Explained, Skipped};
use crate::explain::{Explanation, offline, table};
use crate::terminal::fit_to_terminal;

/// Runs `metaproxy explain`.
///
/// # Errors
/// If the flags contradict each other.
pub fn run(args: &ExplainArgs) -> Result<ExitCode, UsageError> {
    let wanted = args.pod()?;
    let found = match &args.manifests {
        Some(path) => {
            let rules = args.roles.rules(None, false)?;
            offline::explain(&rules, path, &args.namespace, wanted.as_deref())
                .map_err(|error| error.to_string())
        }
        None => client::explain(&args.agent.runtime_dir, wanted.as_deref())
            .map_err(|error| error.to_string())
            .and_then(|found| known(&args.agent, wanted.as_deref(), found))
            .map(|explanations| Explained {
                explanations,
                ..Explained::default()
            }),
    };
    let Explained {
        explanations,
        skipped,
    } = match found {
        Ok(found) => found,
        Err(error) => return Ok(unavailable(&error)),
    };
    for one in &skipped {
        eprintln!("{}: {one}", if one.is_bad() { "error" } else { "note" });
    }
    match (args.agent.output, explanations.as_slice()) {
        // A pod that is requested by name is printed as an object, unless several pods have that name.
        (Output::Json, [one]) if wanted.is_some() => print_json(one),
        (Output::Json, all) => print_json(&all),
        (Output::Text, all) if args.all => print(&fit_to_terminal(&table(all))),
        (Output::Text, all) => {
            let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
            print(&fit_to_terminal(&texts.join("\n")));
        }
    }
    let is_bad = explanations.iter().any(Explanation::is_bad) || skipped.iter().any(Skipped::is_bad);
    Ok(verdict(is_bad))
}

/// Converts an empty answer about one pod into an error that explains which agent to ask.
fn known(
    agent: &AgentArgs,
    wanted: Option<&str>,
    found: Vec<Explanation>,
) -> Result<Vec<Explanation>, String> {
    let Some(wanted) = wanted.filter(|_| found.is_empty()) else {
        return Ok(found);
    };
    let status = client::status(&agent.runtime_dir).ok();
    Err(not_known(
        wanted,
        status.and_then(|status| status.node).as_deref(),
    ))
}

/// Formats the message that the agent of this node does not know a pod.
pub(crate) fn not_known(wanted: &str, node: Option<&str>) -> String {
    let node = node.map_or_else(|| "its node".to_owned(), |node| format!("node {node}"));
    let (namespace, name) = wanted.split_once('/').unwrap_or(("default", wanted));
    format!(
        "no pod {wanted} is known to the agent here, which serves the pods of {node}; `kubectl -n {namespace} get pod {name} \
         -o wide` tells the pod's node, and the agent there is the one to ask"
    )
}
