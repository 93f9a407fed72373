//! The flags that several subcommands share.

use std::path::PathBuf;

use clap::Args;

use super::{LogFormat, LogLevel};

/// The flags that name the pods' cgroup.
#[derive(Debug, Args)]
pub struct CgroupArgs {
    /// Cgroup of all pods [default: the kubepods or kubepods.slice that is found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    pub(super) cgroup: Option<PathBuf>,

    /// Mount of cgroup v2 in which the pods' cgroup is searched [default: the mount that is found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP_ROOT",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    pub(super) cgroup_root: Option<PathBuf>,
}

/// The flags of the log.
#[derive(Clone, Copy, Debug, Args)]
pub struct LoggingArgs {
    /// Format of log lines
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
