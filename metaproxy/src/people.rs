//! The commands for people. What they find goes to standard output, what is in their way to standard error.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;
use serde::Serialize;

use crate::admin::asking::{self, AskError};
use crate::cli::{AgentArgs, Cli, DoctorArgs, ExplainArgs, MigrateArgs, Output, StatusArgs, UsageError};
use crate::doctor::{self, Examination};
use crate::explain::offline::{Explained, Skipped};
use crate::explain::{Explanation, offline, printable, table};
use crate::migrate::{self, Workload};
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
    let wanted = args.pod()?;
    let found = match &args.manifests {
        Some(path) => {
            let rules = args.roles.rules(None, false)?;
            offline::explain(&rules, path, &args.namespace, wanted.as_deref())
                .map_err(|error| error.to_string())
        }
        None => asking::explain(&args.agent.runtime_dir, wanted.as_deref())
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
        // Whoever asks for one by name is given that one, where no other has the name too.
        (Output::Json, [one]) if wanted.is_some() => print_json(one),
        (Output::Json, all) => print_json(&all),
        (Output::Text, all) if args.all => print(&table(all)),
        (Output::Text, all) => {
            let texts: Vec<String> = all.iter().map(ToString::to_string).collect();
            print(&texts.join("\n"));
        }
    }
    let is_bad = explanations.iter().any(Explanation::is_bad) || skipped.iter().any(Skipped::is_bad);
    Ok(verdict(is_bad))
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
    let status = asking::status(&agent.runtime_dir).ok();
    Err(not_known(
        wanted,
        status.and_then(|status| status.node).as_deref(),
    ))
}

/// Of a pod that the agent of a node does not know.
pub(crate) fn not_known(wanted: &str, node: Option<&str>) -> String {
    let node = node.map_or_else(|| "its node".to_owned(), |node| format!("node {node}"));
    let (namespace, name) = wanted.split_once('/').unwrap_or(("default", wanted));
    format!(
        "no pod {wanted} is known to the agent here, which serves the pods of {node}; `kubectl -n {namespace} get pod {name} \
         -o wide` tells the pod's node, and the agent there is the one to ask"
    )
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
    let mut found = doctor::leftovers();
    let mut failed = !found.unseen.is_empty();
    for unseen in &found.unseen {
        eprintln!("error: could not be looked at: {unseen}; {}", doctor::ON_THE_NODE);
    }
    if found.leftovers.is_empty() && !failed {
        print("nothing of kube2iam, kiam or the EKS Pod Identity agent is left on this node\n");
    }
    for one in &found.leftovers {
        print(&format!("{}\n  {}\n", one.what, one.command()));
    }
    if found.leftovers.iter().any(|one| one.is_kept().is_none()) {
        print("looking once more in a few seconds, whether somebody uses them\n");
        found = found.again();
    }
    for one in &found.leftovers {
        let removed = match one.is_kept() {
            None => one
                .remove()
                .map_err(|error| format!("{}: {error}", one.command())),
            Some(why) => Err(format!("{}: {why}", one.what)),
        };
        match removed {
            Ok(()) => print(&format!("removed: {}\n", one.what)),
            Err(error) => {
                failed = true;
                eprintln!("error: not removed: {error}");
            }
        }
    }
    verdict(failed)
}

/// `metaproxy migrate`
pub fn migrate(args: &MigrateArgs) -> ExitCode {
    match values_of(args) {
        Ok(values) => {
            print(&values);
            ExitCode::SUCCESS
        }
        Err(error) => unavailable(&error),
    }
}

fn values_of(args: &MigrateArgs) -> Result<String, String> {
    let mut workloads = Vec::new();
    if !args.words.is_empty() {
        workloads.push(Workload::of_words(&args.words));
    }
    let from_input = [Path::new("-").to_owned()];
    let files = match (args.manifests.as_slice(), workloads.is_empty()) {
        ([], true) => &from_input[..],
        (files, _) => files,
    };
    for file in files {
        let shown = file.display().to_string();
        let text = text_of(file).map_err(|error| format!("{shown}: {error}"))?;
        let found = migrate::workloads(args.from, &shown, &text).map_err(|error| error.to_string())?;
        workloads.extend(found);
    }
    migrate::values_for(args.from, &workloads).map_err(|error| error.to_string())
}

/// Of a file, or of standard input where it is called `-`.
pub(crate) fn text_of(path: &Path) -> io::Result<String> {
    if path == Path::new("-") {
        return io::read_to_string(io::stdin());
    }
    std::fs::read_to_string(path)
}

/// `metaproxy completions`
pub fn completions(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "metaproxy", &mut script);
    print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}

/// `metaproxy man`: all of it on one page.
pub fn man() -> ExitCode {
    let mut page = Vec::new();
    let command = Cli::command();
    let mut rendered = clap_mangen::Man::new(command.clone()).render(&mut page);
    for of in command.get_subcommands() {
        let title = format!(".SH \"METAPROXY {}\"\n", of.get_name().to_uppercase());
        page.extend_from_slice(title.as_bytes());
        let part = clap_mangen::Man::new(of.clone());
        rendered = rendered
            .and_then(|()| part.render_description_section(&mut page))
            .and_then(|()| part.render_options_section(&mut page));
    }
    match rendered {
        Ok(()) => {
            print(&String::from_utf8_lossy(&page));
            ExitCode::SUCCESS
        }
        Err(error) => unavailable(&error.to_string()),
    }
}

fn verdict(is_bad: bool) -> ExitCode {
    ExitCode::from(if is_bad { EX_BAD } else { 0 })
}

fn unavailable(error: &str) -> ExitCode {
    let lines: Vec<String> = error.lines().map(printable).collect();
    eprintln!("error: {}", lines.join("\n"));
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

/// An error with its causes, each of them once: some name theirs themselves.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(&format!(": {more}"));
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use thiserror::Error;

    #[derive(Debug, Error)]
    enum Nested {
        #[error("cannot start: {0}")]
        NamesIt(#[source] io::Error),
        #[error("cannot go on")]
        DoesNot(#[source] io::Error),
    }

    #[test]
    fn each_cause_is_named_once() {
        let cause = || io::Error::other("no room");
        assert_eq!(with_causes(&Nested::NamesIt(cause())), "cannot start: no room");
        assert_eq!(with_causes(&Nested::DoesNot(cause())), "cannot go on: no room");
    }
}
