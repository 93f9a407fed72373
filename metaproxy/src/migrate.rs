//! `metaproxy migrate`: what kube2iam and kiam were told, as values of our chart; with a line on everything that has no
//! counterpart, and why.

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

/// The software whose configuration is moved to metaproxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceSoftware {
    /// kube2iam: its DaemonSet
    Kube2iam,
    /// kiam: its agent's DaemonSet, and its server's DaemonSet or Deployment
    Kiam,
}

/// Why there is nothing to show.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MigrateError {
    /// A manifest that can't be read.
    #[error("{path}:{problem}")]
    Manifest {
        /// Which file.
        path: String,
        /// Line and problem.
        problem: String,
    },
    /// A manifest of something else.
    #[error("{path}: nothing of {of} in it: {why}")]
    NotThere {
        /// Which file.
        path: String,
        /// `kube2iam` or `kiam`
        of: &'static str,
        /// What it is, and what to give instead.
        why: String,
    },
    /// A command line that can't be read.
    #[error("{path}: {why}")]
    Unreadable {
        /// Which file.
        path: String,
        /// Why.
        why: String,
    },
    /// A value that can't be used.
    #[error("{flag}: {problem}")]
    Value {
        /// The flag, as it was given.
        flag: String,
        /// What is wrong.
        problem: String,
    },
    /// What the agent would not start with.
    #[error("{of}: the agent would refuse what becomes of it: {problem}")]
    Refused {
        /// The flags that it comes from.
        of: String,
        /// What the agent would say.
        problem: String,
    },
    /// A value that is not known.
    #[error(
        "{flag}: {missing}, so the flag's value is not known; write the value in its place, or give the flags after -- \
         (`metaproxy migrate … -- --flag=value …`)"
    )]
    Missing {
        /// The flag, as it was given.
        flag: String,
        /// What is missing.
        missing: String,
    },
}

impl SourceSoftware {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kube2iam => "kube2iam",
            Self::Kiam => "kiam",
        }
    }

    fn grammar(self) -> Grammar {
        match self {
            Self::Kube2iam => kube2iam::GRAMMAR,
            Self::Kiam => kiam::GRAMMAR,
        }
    }
}

/// Values for what these workloads were told, as YAML.
///
/// # Errors
/// Where a value makes no sense.
pub fn values_for(from: SourceSoftware, workloads: &[Workload]) -> Result<String, MigrateError> {
    let grammar = from.grammar();
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

/// The workloads of this kind in a manifest.
///
/// # Errors
/// Where it can't be read, or has none.
pub fn workloads(from: SourceSoftware, path: &str, text: &str) -> Result<Vec<Workload>, MigrateError> {
    let objects = crate::pods::manifests::parse::objects(text).map_err(|broken| MigrateError::Manifest {
        path: path.to_owned(),
        problem: match elsewhere::template(text) {
            Some(hint) => format!("{broken}; {hint}"),
            None => broken.to_string(),
        },
    })?;
    let mut found = Vec::new();
    // What another object has made says the same once more, with what Kubernetes has added.
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
