//! `metaproxy migrate`: what kube2iam and kiam were told, as values of our chart; with a line on everything that has no
//! counterpart, and why.

mod kiam;
mod kube2iam;
mod manifest;
mod values;
mod words;

use thiserror::Error;

pub use self::manifest::Workload;
use self::values::Values;
use self::words::{Flag, Grammar};

/// Where somebody comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum From {
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
    #[error(
        "{path}: nothing of {of} in it: no DaemonSet or Deployment has a container whose image or command is called so. Its \
         flags can be given after -- instead"
    )]
    NotThere {
        /// Which file.
        path: String,
        /// `kube2iam` or `kiam`
        of: &'static str,
    },
    /// A value that can't be read.
    #[error("{flag}={value}: {problem}")]
    Value {
        /// Which flag.
        flag: String,
        /// As given.
        value: String,
        /// What is wrong.
        problem: String,
    },
}

impl From {
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
pub fn values_for(from: From, workloads: &[Workload]) -> Result<String, MigrateError> {
    let grammar = from.grammar();
    let mut values = Values::new(from.name(), workloads);
    let mut flags: Vec<Flag> = Vec::new();
    for workload in workloads {
        flags.extend(words::parse(&workload.words, grammar));
    }
    match from {
        From::Kube2iam => kube2iam::migrate(&flags, &mut values)?,
        From::Kiam => kiam::migrate(&flags, workloads, &mut values)?,
    }
    for workload in workloads {
        values.placement(workload);
    }
    Ok(values.to_string())
}

/// The workloads of this kind in a manifest.
///
/// # Errors
/// Where it can't be read, or has none.
pub fn workloads(from: From, path: &str, text: &str) -> Result<Vec<Workload>, MigrateError> {
    let objects = crate::pods::manifests::parse::objects(text).map_err(|broken| MigrateError::Manifest {
        path: path.to_owned(),
        problem: broken.to_string(),
    })?;
    let found: Vec<Workload> = objects
        .iter()
        .filter_map(|(_, object)| Workload::of(object, from.name()))
        .collect();
    if found.is_empty() {
        return Err(MigrateError::NotThere {
            path: path.to_owned(),
            of: from.name(),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
