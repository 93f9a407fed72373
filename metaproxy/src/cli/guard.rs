//! The flags of `metaproxy guard`.

use std::path::PathBuf;

use clap::Args;

use super::args::{CgroupArgs, LoggingArgs};
use super::{Close, UsageError};
use crate::guard::Settings;
use crate::intercept::guard::GuardMode;

/// The arguments of `metaproxy guard`. Every flag has a variable `METAPROXY_<FLAG>`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
                  metaproxy guard --close at-once      # in a unit that starts before the kubelet\n  \
                  metaproxy guard --guard connect      # does not affect containers that are no pods\n\n\
                  Exit status: 0 after SIGTERM or SIGINT; 1 if it cannot start, or a task of it fails; 64 on bad usage.")]
pub struct GuardArgs {
    #[command(flatten)]
    pub(super) cgroups: CgroupArgs,

    /// What the guard stops
    #[arg(
        long,
        env = "METAPROXY_GUARD",
        value_name = "GUARD",
        default_value = "auto",
        help_heading = "Interception"
    )]
    pub(super) guard: GuardMode,

    /// When the guard begins to refuse pods
    #[arg(
        long,
        env = "METAPROXY_CLOSE",
        value_name = "WHEN",
        default_value = "when-served",
        help_heading = "Operation"
    )]
    pub(super) close: Close,

    /// Runtime directory of the agents, in which they mark that they serve pods
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy",
        help_heading = "Operation"
    )]
    pub(super) runtime_dir: PathBuf,

    /// The flags of the log.
    #[command(flatten)]
    pub logging: LoggingArgs,
}

impl GuardArgs {
    /// Validates the flags without reading the state of the machine.
    ///
    /// # Errors
    /// If the flags make a guard that does nothing.
    pub fn settings(&self) -> Result<Settings, UsageError> {
        if self.guard == GuardMode::Off {
            return Err(UsageError::IdleGuard);
        }
        Ok(Settings {
            mode: self.guard,
            at_once: self.close == Close::AtOnce,
            cgroup: self.cgroups.cgroup.clone(),
            cgroup_root: self.cgroups.cgroup_root.clone(),
            runtime_dir: self.runtime_dir.clone(),
        })
    }
}
