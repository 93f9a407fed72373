//! Turns the configuration of kube2iam or kiam into values of the chart. Everything without a counterpart gets a line
//! that says why.

mod command;
mod conflicts;
mod elsewhere;
mod environment;
mod kiam;
mod kube2iam;
mod manifest;
mod named_roles;
mod refused;
mod routes;
mod template;
mod values;
mod variables;
mod versions;
mod words;

use thiserror::Error;

pub use self::manifest::Workload;
use self::manifest::maker;
use self::values::Values;
use self::words::{Flag, Grammar};
use crate::cli::SourceSoftware;

/// The reasons why no values can be given.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MigrateError {
    /// A manifest cannot be read.
    #[error("{path}:{problem}")]
    Manifest {
        /// The manifest's path.
        path: String,
        /// The line and the problem.
        problem: String,
    },
    /// A manifest holds no workload of this software.
    #[error("{path}: no workload of {of} found: {why}")]
    NotThere {
        /// The manifest's path.
        path: String,
        /// The software: `kube2iam` or `kiam`.
        of: &'static str,
        /// The kind of the objects, and the input to give instead.
        why: String,
    },
    /// A command line cannot be read.
    #[error("{path}: {why}")]
    Unreadable {
        /// The manifest's path.
        path: String,
        /// The reason.
        why: String,
    },
    /// The value of a flag cannot be used.
    #[error("{flag}: {problem}")]
    Value {
        /// The flag, as it was given.
        flag: String,
        /// The problem of the value.
        problem: String,
    },
    /// The agent would not start with the values.
    #[error("{of}: the agent would refuse its value: {problem}")]
    Refused {
        /// The flags from which the refused value comes.
        of: String,
        /// The agent's error.
        problem: String,
    },
    /// The manifest does not have the value of a flag.
    #[error(
        "{flag}: {missing}, so the flag's value is not known; write the value into the manifest, or give the flags after -- \
         (`metaproxy migrate … -- --flag=value …`)"
    )]
    Missing {
        /// The flag, as it was given.
        flag: String,
        /// The source that has the value instead.
        missing: String,
    },
}

fn grammar_of(software: SourceSoftware) -> Grammar {
    match software {
        SourceSoftware::Kube2iam => kube2iam::GRAMMAR,
        SourceSoftware::Kiam => kiam::GRAMMAR,
    }
}

/// Makes the values, as YAML, from the flags of workloads.
///
/// # Errors
/// If a flag has a value that cannot be used.
pub fn values_for(from: SourceSoftware, workloads: &[Workload]) -> Result<String, MigrateError> {
    let grammar = grammar_of(from);
    let mut workloads = workloads.to_vec();
    let workloads = &mut workloads[..];
    let mut lines = Vec::new();
    for workload in &mut *workloads {
        let line = words::parse(&workload.words, &workload.variables, grammar)?;
        workload.part.clone_from(&line.part);
        lines.push(line);
    }
    let workloads = &*workloads;
    conflicts::check(workloads, &lines, grammar)?;
    let flags: Vec<Flag> = lines.into_iter().flat_map(|line| line.flags).collect();
    let mut values = Values::new(from.name(), workloads);
    match from {
        SourceSoftware::Kube2iam => kube2iam::migrate(&flags, workloads, &mut values)?,
        SourceSoftware::Kiam => kiam::migrate(&flags, workloads, &mut values)?,
    }
    for workload in workloads {
        template::map(workload, &mut values);
    }
    for (what, how) in versions::FOR_EVERY_POD {
        values.change(what, how.replace("{of}", from.name()));
    }
    refused::check(&values)?;
    Ok(values.to_string())
}

/// Finds the workloads of a software in a manifest.
///
/// # Errors
/// If the manifest cannot be read, or holds none.
pub fn workloads(from: SourceSoftware, path: &str, text: &str) -> Result<Vec<Workload>, MigrateError> {
    let objects = crate::pods::manifests::parse::objects(text).map_err(|broken| MigrateError::Manifest {
        path: path.to_owned(),
        problem: match elsewhere::template(text) {
            Some(hint) => format!("{broken}; {hint}"),
            None => broken.to_string(),
        },
    })?;
    let mut found = Vec::new();
    // An object that another object of the manifest has made is skipped, because it repeats the same flags with
    // Kubernetes' additions.
    for (_, object) in objects.iter().filter(|(_, object)| maker(object).is_none()) {
        let workload = Workload::of(object, from.name()).map_err(|why| MigrateError::Unreadable {
            path: path.to_owned(),
            why,
        })?;
        found.extend(workload);
    }
    if found.is_empty() {
        let objects: Vec<&serde_json::Value> = objects.iter().map(|(_, object)| object).collect();
        return Err(MigrateError::NotThere {
            path: path.to_owned(),
            of: from.name(),
            why: elsewhere::hint(from, &objects),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
