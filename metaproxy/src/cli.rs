//! The command line. Everything is parsed and checked here, before anything is started.

mod agent;
mod args;
mod completions;
mod doctor;
mod explain;
mod guard;
mod migrate;
mod probe;
mod roles;
mod run;
mod status;
mod usage;
mod values;

use std::ffi::OsString;

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

pub use self::agent::{AgentArgs, Output};
pub use self::args::LoggingArgs;
pub use self::completions::CompletionsArgs;
pub use self::doctor::DoctorArgs;
pub use self::explain::ExplainArgs;
pub use self::guard::GuardArgs;
pub use self::migrate::MigrateArgs;
pub use self::probe::ProbeArgs;
pub use self::roles::RoleArgs;
pub use self::run::RunArgs;
pub use self::status::StatusArgs;
pub use self::usage::UsageError;
pub use self::values::{
    AdminAddress, Close, HostNetwork, ImdsV1, LogFormat, LogLevel, NamespacePolicy, Switch, TagChoice,
    TokenPolicy,
};

/// Exit status for bad usage (EX_USAGE of sysexits.h).
pub const EX_USAGE: u8 = 64;

/// Per-pod IAM roles for Kubernetes on EC2, with no iptables.
#[derive(Debug, Parser)]
#[command(name = "metaproxy", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// From words, and variables of the environment that are not empty: charts set those for what is not given.
    ///
    /// # Errors
    /// Where they make no sense; also for help and version.
    pub fn from_words(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let is_set = |arg: &Arg| {
            let value = arg.get_env().and_then(std::env::var_os);
            value.is_none_or(|value| !value.is_empty())
        };
        Self::parsed(words, is_set)
    }

    /// From words alone, whatever this process has in its environment.
    ///
    /// # Errors
    /// Where they make no sense.
    pub fn from_words_alone(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        Self::parsed(words, |_| false)
    }

    fn parsed(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
        takes_variable: impl Fn(&Arg) -> bool,
    ) -> Result<Self, clap::Error> {
        let command = Self::command().mut_subcommands(|command| {
            command.mut_args(|arg| {
                if takes_variable(&arg) {
                    arg
                } else {
                    arg.env(None::<&'static str>)
                }
            })
        });
        Self::from_arg_matches(&command.try_get_matches_from(words)?)
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node: intercept pods' metadata connections and serve each pod its own role
    Run(Box<RunArgs>),
    /// Keep pods from the node's metadata service while no agent of this node serves them
    Guard(Box<GuardArgs>),
    /// Say why a pod gets the role that it gets, or none: by the agent of this node, or by manifests
    Explain(Box<ExplainArgs>),
    /// Look for what keeps pods of this node from being served, and for what kube2iam or kiam have left here
    Doctor(Box<DoctorArgs>),
    /// Show how the agent of this node is doing, and its pods' sessions
    Status(StatusArgs),
    /// Turn what kube2iam or kiam was told into values of metaproxy's chart
    Migrate(MigrateArgs),
    /// Print what completes this command's words, for a shell to read
    Completions(CompletionsArgs),
    /// Print the manual page, for man(1) to show
    Man,
    /// Ask the agent of this container how it is doing; for the kubelet's exec probes
    Probe(ProbeArgs),
}

#[cfg(test)]
mod tests;
