//! What flags of few values are set to.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

/// `--namespace-policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespacePolicy {
    /// A role must be allowed by an annotation of the namespace
    Required,
    /// The namespace is not asked
    Off,
}

/// `--token-policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenPolicy {
    /// An admission policy must limit what for, as the chart's does: it is tried (dryRun), and without it none is asked for
    Required,
    /// They are asked for whatever limits them
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

/// `--session-tags`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TagChoice {
    /// None
    Off,
    /// Cluster, node, namespace, pod and service account
    On,
    /// Exactly those of EKS Pod Identity, transitive as its are, so that policies that were written for it hold
    Eks,
}

/// `--host-network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostNetwork {
    /// They reach the node's own metadata service, as without metaproxy
    Passthrough,
    /// They reach none
    Enforce,
}

/// `metaproxy guard --close`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Close {
    /// Once an agent has served pods since the node booted, so that a first installation that fails harms nobody
    WhenServed,
    /// From the start, which is for a unit that runs before the kubelet does
    AtOnce,
}

/// `--admin-address`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminAddress(pub Option<SocketAddr>);

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let address = text
            .parse()
            .map_err(|_| "it is an address such as 127.0.0.1:16925, or off".to_owned());
        address.map(|address| Self(Some(address)))
    }
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Switched on
    On,
    /// Switched off
    Off,
}

/// `--log-format`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines to read
    Text,
    /// A JSON object on each line
    Json,
}

/// `--log`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures that end the process, or need an operator
    Error,
    /// Errors, and whatever is not as it should be
    Warn,
    /// Warnings, and what changes: roles, sessions, refusals
    Info,
    /// All of that, and each request
    Debug,
    /// Everything
    Trace,
}

/// A duration of 1s to 1m.
pub(super) fn a_second_to_a_minute(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_secs(60))
}

/// A duration of 1s to 1h.
pub(super) fn a_second_to_an_hour(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_secs(3600))
}

fn duration_within(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let shown = |duration| humantime::format_duration(duration);
    Err(format!(
        "it is {} to {}",
        shown(*range.start()),
        shown(*range.end())
    ))
}
