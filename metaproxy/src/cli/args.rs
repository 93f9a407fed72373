//! Flags that more than one subcommand has.

use std::path::PathBuf;

use clap::Args;

use super::{LogFormat, LogLevel};

/// Where the pods are.
#[derive(Debug, Args)]
pub struct PlaceArgs {
    /// The pods' cgroup [default: kubepods or kubepods.slice, found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    pub(super) cgroup: Option<PathBuf>,

    /// The cgroup v2 mount to look for it in [default: found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP_ROOT",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    pub(super) cgroup_root: Option<PathBuf>,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Args)]
pub struct LoggingArgs {
    /// Form of log lines
    #[arg(
        long,
        env = "METAPROXY_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        help_heading = "Operation"
    )]
    pub log_format: LogFormat,

    /// Least severe level that is logged
    #[arg(
        long,
        env = "METAPROXY_LOG",
        value_name = "LEVEL",
        default_value = "info",
        help_heading = "Operation"
    )]
    pub log: LogLevel,
}
