//! Parses the command line. Every flag is checked here, before anything is started.

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
pub use self::migrate::{MigrateArgs, SourceSoftware};
pub use self::probe::ProbeArgs;
pub use self::roles::RoleArgs;
pub use self::run::RunArgs;
pub use self::status::StatusArgs;
pub use self::usage::UsageError;
pub use self::values::{
    AdminAddress, Close, HostNetwork, ImdsV1, LogFormat, LogLevel, NamespacePolicy, Switch, TagChoice,
    TokenPolicy,
};

/// The exit status for bad usage (EX_USAGE of sysexits.h).
pub const EX_USAGE: u8 = 64;

/// Gives each pod its own IAM role on Kubernetes nodes in EC2, without iptables.
#[derive(Debug, Parser)]
#[command(name = "metaproxy", version, about, max_term_width = 100)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the arguments and the environment variables. An empty variable counts as unset, because charts set an
    /// empty variable for a value that is not given.
    ///
    /// # Errors
    /// If the arguments cannot be parsed. Requests for help and the version are errors too, because clap prints them
    /// as errors.
    pub fn from_words(
        words: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let is_set = |arg: &Arg| {
            let value = arg.get_env().and_then(std::env::var_os);
            value.is_none_or(|value| !value.is_empty())
        };
        Self::parsed(words, is_set)
    }

    /// Parses the arguments without the environment of this process.
    ///
    /// # Errors
    /// If the arguments cannot be parsed.
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
    /// Run the agent of this node: redirect pods' connections to the metadata service, and serve each pod its own role
    Run(Box<RunArgs>),
    /// Keep pods from the node's metadata service while no agent of this node serves them
    Guard(Box<GuardArgs>),
    /// Explain which role a pod gets, and why: as the agent of this node decides, or from manifests
    Explain(Box<ExplainArgs>),
    /// Check this node for problems that keep pods from being served, and for leftovers of kube2iam and kiam
    Doctor(Box<DoctorArgs>),
    /// Show the state of this node's agent, and the sessions of its pods
    Status(StatusArgs),
    /// Convert the configuration of kube2iam or kiam into values of metaproxy's chart
    Migrate(MigrateArgs),
    /// Print a script that completes this command in a shell
    Completions(CompletionsArgs),
    /// Print the manual page, for man(1)
    Man,
    /// Ask the agent or guard of this container whether it is alive or ready; for the kubelet's exec probes
    Probe(ProbeArgs),
}

#[cfg(test)]
mod tests;
