//! What flags of few values are set to.

use std::net::SocketAddr;
use std::str::FromStr;

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

/// `--host-network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum HostNetwork {
    /// They reach the node's own metadata service, as without metaproxy
    Passthrough,
    /// They reach none
    Enforce,
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
            .map_err(|_| "it is an address such as 127.0.0.1:9808, or off".to_owned());
        address.map(|address| Self(Some(address)))
    }
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
