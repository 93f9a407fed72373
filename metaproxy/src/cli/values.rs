//! The values of flags, and their parsers.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;

/// The values of `--namespace-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespacePolicy {
    /// An annotation of the namespace must allow the role of a pod's annotation
    Required,
    /// Annotations of namespaces are not read
    Off,
}

/// The values of `--token-policy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenPolicy {
    /// The agent requests tokens only while a trial (dryRun) shows that an admission policy, such as the chart's, limits their audience
    Required,
    /// The agent requests tokens without a trial
    Off,
}

/// The values of `--imds-v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ImdsV1 {
    /// As the node's own metadata service requires or allows it
    Auto,
    /// Requests without a session token are answered
    Allow,
    /// Requests without a session token get 401
    Deny,
}

/// The values of `--session-tags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TagChoice {
    /// Sessions have no tags
    Off,
    /// Cluster, node, namespace, pod and service account, not transitive
    On,
    /// Exactly the tags of EKS Pod Identity, transitive as there, so that policies that were written for it hold
    Eks,
}

/// The values of `--host-network`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostNetwork {
    /// They reach the node's metadata service, as without metaproxy
    Passthrough,
    /// They get no credentials, as other pods without a role
    Enforce,
}

/// The values of `metaproxy guard --close`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Close {
    /// Once an agent has served pods since the node booted, so that a failed first installation does no harm
    WhenServed,
    /// From the start, for a unit that runs before the kubelet
    AtOnce,
}

/// The value of `--admin-address`; `None` is `off`.
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
            .map_err(|_| "not an address and port such as 127.0.0.1:16925, and not off".to_owned());
        address.map(|address| Self(Some(address)))
    }
}

/// The values of switches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Enabled
    On,
    /// Disabled
    Off,
}

/// The values of `--log-format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines of text for readers
    Text,
    /// One JSON object on each line
    Json,
}

/// The values of `--log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures that end the process or need an operator
    Error,
    /// Errors, and everything that is degraded or refused
    Warn,
    /// Warnings, and changes of roles and sessions
    Info,
    /// Info, and each request
    Debug,
    /// Everything
    Trace,
}

/// Parses a duration of 1s to 1m.
pub(super) fn a_second_to_a_minute(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=Duration::from_secs(60))
}

/// Parses a duration of 1s to 1h.
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
        "not a duration from {} to {}",
        shown(*range.start()),
        shown(*range.end())
    ))
}
