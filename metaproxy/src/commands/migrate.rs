//! `metaproxy migrate`: converts the flags of kube2iam or kiam into values of the chart.

use std::path::Path;
use std::process::ExitCode;

use super::output::{print, unavailable};
use crate::cli::MigrateArgs;
use crate::input::read_text;
use crate::migrate::{self, Workload};

/// Runs `metaproxy migrate`.
pub fn run(args: &MigrateArgs) -> ExitCode {
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
    if !args.flags.is_empty() {
        workloads.push(Workload::of_words(&args.flags));
    }
    let from_input = [Path::new("-").to_owned()];
    let files = match (args.manifests.as_slice(), workloads.is_empty()) {
        ([], true) => &from_input[..],
        (files, _) => files,
    };
    for file in files {
        let shown = file.display().to_string();
        let text = read_text(file).map_err(|error| format!("{shown}: {error}"))?;
        let found = migrate::workloads(args.from, &shown, &text).map_err(|error| error.to_string())?;
        workloads.extend(found);
    }
    migrate::values_for(args.from, &workloads).map_err(|error| error.to_string())
}
