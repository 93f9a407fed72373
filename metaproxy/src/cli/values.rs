//! What flags of few values are set to.

use clap::ValueEnum;

/// `--namespace-policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespacePolicy {
    /// A role must be allowed by an annotation of the namespace
    Required,
    /// The namespace is not asked
    Off,
}

/// `--imds-v1`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImdsV1 {
    /// As the node's own metadata service has it
    Auto,
    /// They may
    Allow,
    /// They get 401
    Deny,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// It is done
    On,
    /// It is not
    Off,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object on each line
    Json,
}

/// `--log`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures
    Error,
    /// And what somebody should look at
    Warn,
    /// And what happens
    Info,
    /// And each request
    Debug,
    /// And everything else
    Trace,
}
