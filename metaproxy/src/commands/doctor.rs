//! `metaproxy doctor`: reports problems that keep the pods of this node from being served, and leftovers of other
//! agents.

use std::process::ExitCode;

use super::output::{print, print_json, verdict};
use crate::cli::{DoctorArgs, Output};
use crate::doctor::{self, Examination};
use crate::terminal::fit_to_terminal;

/// Runs `metaproxy doctor`.
pub async fn run(args: &DoctorArgs, examination: &Examination) -> ExitCode {
    if args.fix_leftovers {
        return fix_leftovers();
    }
    let report = doctor::examine(examination).await;
    match args.output {
        Output::Text => print(&fit_to_terminal(&report.to_string())),
        Output::Json => print_json(&report),
    }
    report.exit_code()
}

fn fix_leftovers() -> ExitCode {
    let mut found = doctor::find_leftovers();
    let mut failed = !found.not_examined.is_empty();
    for not_examined in &found.not_examined {
        eprintln!(
            "error: could not be looked at: {not_examined}; {}",
            doctor::RUN_ON_THE_NODE_ADVICE
        );
    }
    if found.leftovers.is_empty() && !failed {
        print("nothing of kube2iam, kiam or the EKS Pod Identity agent is left on this node\n");
    }
    for one in &found.leftovers {
        print(&format!("{}\n  {}\n", one.what, one.command()));
    }
    if found.leftovers.iter().any(|one| one.reason_to_keep().is_none()) {
        print("looking once more in a few seconds, whether somebody uses them\n");
        found = found.confirm();
    }
    for one in &found.leftovers {
        let removed = match one.reason_to_keep() {
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
