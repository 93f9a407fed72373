//! The command line. Everything is parsed and checked here, before anything is started.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use thiserror::Error;

use crate::agent::Settings;
use crate::credentials::sts::StsSettings;
use crate::roles::arn::{RoleError, parse_role};
use crate::roles::policy::{AllowedRolesStyle, PermittedMatch};
use crate::roles::{AnnotationKeys, BaseArn, Rules};

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

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent of this node: intercept pods' metadata connections and serve each pod its own role
    Run(Box<RunArgs>),
}

/// `metaproxy run`. Every flag can also be given as METAPROXY_<FLAG>.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Name of this node: pods that are bound to another one are left out [default: $NODE_NAME]
    #[arg(long, env = "METAPROXY_NODE_NAME", value_name = "NAME", help_heading = "Pods")]
    node_name: Option<String>,

    /// Read Pod, Namespace and ServiceAccount objects from the YAML and JSON files of a directory; read again on change
    #[arg(long, env = "METAPROXY_MANIFESTS", value_name = "DIR", help_heading = "Pods")]
    manifests: Option<PathBuf>,

    /// Kubeconfig of the API server to read pods from
    #[arg(
        long,
        env = "METAPROXY_KUBECONFIG",
        value_name = "FILE",
        conflicts_with = "manifests",
        help_heading = "Pods"
    )]
    kubeconfig: Option<PathBuf>,

    /// The pods' cgroup [default: kubepods or kubepods.slice, found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    cgroup: Option<PathBuf>,

    /// The cgroup v2 mount to look for it in [default: found]
    #[arg(
        long,
        env = "METAPROXY_CGROUP_ROOT",
        value_name = "DIR",
        help_heading = "Interception"
    )]
    cgroup_root: Option<PathBuf>,

    /// Address of this node at which pods reach the listener; repeatable [default: the node's IPv4 and IPv6 address]
    #[arg(
        long,
        env = "METAPROXY_LISTEN_ADDRESS",
        value_name = "IP",
        value_delimiter = ',',
        help_heading = "Interception"
    )]
    listen_address: Vec<IpAddr>,

    /// Port of the listener; 0 takes a free one outside the ephemeral and NodePort ranges
    #[arg(
        long,
        env = "METAPROXY_LISTEN_PORT",
        value_name = "PORT",
        default_value_t = 0,
        help_heading = "Interception"
    )]
    listen_port: u16,

    /// What a role that is only a name is prefixed with, such as arn:aws:iam::123456789012:role/
    #[arg(
        long,
        env = "METAPROXY_BASE_ROLE_ARN",
        value_name = "ARN",
        help_heading = "Roles"
    )]
    base_role_arn: Option<String>,

    /// Role of pods that have no annotation (but not of hostNetwork pods)
    #[arg(
        long,
        env = "METAPROXY_DEFAULT_ROLE",
        value_name = "ROLE",
        help_heading = "Roles"
    )]
    default_role: Option<String>,

    /// Pod annotation that names the role
    #[arg(
        long,
        env = "METAPROXY_ROLE_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/role",
        help_heading = "Roles"
    )]
    role_annotation: String,

    /// Pod annotation with an external id
    #[arg(
        long,
        env = "METAPROXY_EXTERNAL_ID_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/external-id",
        help_heading = "Roles"
    )]
    external_id_annotation: String,

    /// Pod annotation with a session name
    #[arg(
        long,
        env = "METAPROXY_SESSION_NAME_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/session-name",
        help_heading = "Roles"
    )]
    session_name_annotation: String,

    /// Whether the namespace must allow an annotated role (as kiam asks) or is not asked (as kube2iam by default)
    #[arg(
        long,
        env = "METAPROXY_NAMESPACE_POLICY",
        value_name = "POLICY",
        default_value = "required",
        help_heading = "Roles"
    )]
    namespace_policy: NamespacePolicy,

    /// Namespace annotation with a regular expression of allowed roles (kiam)
    #[arg(
        long,
        env = "METAPROXY_PERMITTED_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/permitted",
        help_heading = "Roles"
    )]
    permitted_annotation: String,

    /// Namespace annotation with a JSON list of allowed roles (kube2iam)
    #[arg(
        long,
        env = "METAPROXY_ALLOWED_ROLES_ANNOTATION",
        value_name = "KEY",
        default_value = "iam.amazonaws.com/allowed-roles",
        help_heading = "Roles"
    )]
    allowed_roles_annotation: String,

    /// How entries of the JSON list are read
    #[arg(
        long,
        env = "METAPROXY_ALLOWED_ROLES_STYLE",
        value_name = "STYLE",
        default_value = "glob",
        help_heading = "Roles"
    )]
    allowed_roles_style: AllowedRolesStyle,

    /// How the regular expression is compared
    #[arg(
        long,
        env = "METAPROXY_PERMITTED_MATCH",
        value_name = "MATCH",
        default_value = "anchored",
        help_heading = "Roles"
    )]
    permitted_match: PermittedMatch,

    /// How long a session lives: 15m to 1h, as the node's role assumes the pod's (role chaining)
    #[arg(
        long, env = "METAPROXY_SESSION_DURATION", value_name = "DURATION", default_value = "1h",
        value_parser = humantime::parse_duration, help_heading = "Sessions"
    )]
    session_duration: Duration,

    /// Region of STS [default: the SDK's chain: environment, profile, the node's metadata service]
    #[arg(
        long,
        env = "METAPROXY_REGION",
        value_name = "REGION",
        help_heading = "Sessions"
    )]
    region: Option<String>,

    /// URL of STS [default: the region's]
    #[arg(
        long,
        env = "METAPROXY_STS_ENDPOINT",
        value_name = "URL",
        help_heading = "Sessions"
    )]
    sts_endpoint: Option<String>,

    /// The node's own metadata service
    #[arg(
        long,
        env = "METAPROXY_IMDS_ENDPOINT",
        value_name = "URL",
        default_value = "http://169.254.169.254",
        help_heading = "Sessions"
    )]
    imds_endpoint: String,

    /// Directory for the key of session tokens (made where it does not exist)
    #[arg(
        long,
        env = "METAPROXY_RUNTIME_DIR",
        value_name = "DIR",
        default_value = "/run/metaproxy",
        help_heading = "Operation"
    )]
    runtime_dir: PathBuf,

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

/// `--namespace-policy`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NamespacePolicy {
    /// A role must be allowed by an annotation of the namespace
    Required,
    /// The namespace is not asked
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

/// Flags that parse one by one, but not together or not as what they stand for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UsageError {
    /// No pods.
    #[error(
        "no source of pods: give --manifests DIR with Pod manifests. Reading them from the API server is not part of \
         this version"
    )]
    NoSource,
    /// The API server.
    #[error(
        "--kubeconfig: reading pods from the API server is not part of this version; give --manifests DIR"
    )]
    Kubeconfig,
    /// A role.
    #[error("{flag} {value:?}: {error}")]
    Role {
        /// Which flag.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is wrong.
        error: RoleError,
    },
    /// An address that pods can't reach.
    #[error(
        "--listen-address {0}: pods cannot reach a loopback, link-local or unspecified address; give one of the node's own"
    )]
    Unreachable(IpAddr),
    /// An address twice.
    #[error("--listen-address {0} is given twice")]
    Twice(IpAddr),
    /// A duration that STS refuses.
    #[error(
        "--session-duration {}: STS takes 15m to 1h where one role assumes another, as the node's role assumes the \
         pod's (role chaining)", humantime::format_duration(*.0)
    )]
    Duration(Duration),
    /// An endpoint that is no URL.
    #[error("{flag} {value:?}: not a URL that begins with http:// or https://")]
    Url {
        /// Which flag.
        flag: &'static str,
        /// As given.
        value: String,
    },
    /// An annotation key that can't be one.
    #[error("{flag} {value:?}: not the key of an annotation, which looks like iam.amazonaws.com/role")]
    Key {
        /// Which flag.
        flag: &'static str,
        /// As given.
        value: String,
    },
}

impl RunArgs {
    /// Checks everything that can be checked without looking at the machine.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn settings(&self) -> Result<Settings, UsageError> {
        let manifests = match (&self.manifests, &self.kubeconfig) {
            (Some(dir), _) => dir.clone(),
            (None, Some(_)) => return Err(UsageError::Kubeconfig),
            (None, None) => return Err(UsageError::NoSource),
        };
        Ok(Settings {
            node_name: self.node_name.clone().or_else(node_name_of_environment),
            manifests,
            cgroup: self.cgroup.clone(),
            cgroup_root: self.cgroup_root.clone(),
            listen_addresses: self.listen_addresses()?,
            listen_port: self.listen_port,
            rules: self.rules()?,
            sts: self.sts()?,
            runtime_dir: self.runtime_dir.clone(),
        })
    }

    fn listen_addresses(&self) -> Result<Vec<IpAddr>, UsageError> {
        for (index, ip) in self.listen_address.iter().enumerate() {
            let unreachable = match ip {
                IpAddr::V4(ip) => {
                    ip.is_loopback() || ip.is_unspecified() || ip.is_link_local() || ip.is_multicast()
                }
                IpAddr::V6(ip) => {
                    ip.is_loopback()
                        || ip.is_unspecified()
                        || ip.is_unicast_link_local()
                        || ip.is_multicast()
                        || ip.to_ipv4_mapped().is_some()
                }
            };
            if unreachable {
                return Err(UsageError::Unreachable(*ip));
            }
            if self.listen_address[..index].contains(ip) {
                return Err(UsageError::Twice(*ip));
            }
        }
        Ok(self.listen_address.clone())
    }

    fn rules(&self) -> Result<Rules, UsageError> {
        let bad = |flag: &'static str, value: &str| {
            let value = value.to_owned();
            move |error| UsageError::Role { flag, value, error }
        };
        let base = match &self.base_role_arn {
            Some(text) => Some(text.parse::<BaseArn>().map_err(bad("--base-role-arn", text))?),
            None => None,
        };
        let default_role = match &self.default_role {
            Some(text) => Some(parse_role(text, base.as_ref()).map_err(bad("--default-role", text))?),
            None => None,
        };
        Ok(Rules {
            base,
            default_role,
            keys: AnnotationKeys {
                role: key("--role-annotation", &self.role_annotation)?,
                external_id: key("--external-id-annotation", &self.external_id_annotation)?,
                session_name: key("--session-name-annotation", &self.session_name_annotation)?,
                permitted: key("--permitted-annotation", &self.permitted_annotation)?,
                allowed_roles: key("--allowed-roles-annotation", &self.allowed_roles_annotation)?,
            },
            policy_required: self.namespace_policy == NamespacePolicy::Required,
            allowed_roles_style: self.allowed_roles_style,
            permitted_match: self.permitted_match,
        })
    }

    fn sts(&self) -> Result<StsSettings, UsageError> {
        if !(Duration::from_secs(15 * 60)..=Duration::from_secs(3600)).contains(&self.session_duration) {
            return Err(UsageError::Duration(self.session_duration));
        }
        if let Some(endpoint) = &self.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        check_url("--imds-endpoint", &self.imds_endpoint)?;
        Ok(StsSettings {
            region: self.region.clone(),
            endpoint: self.sts_endpoint.clone(),
            imds_endpoint: self.imds_endpoint.clone(),
            duration: self.session_duration,
        })
    }
}

/// What a DaemonSet sets by the downward API.
#[expect(
    clippy::disallowed_methods,
    reason = "a convention beside METAPROXY_NODE_NAME, which clap reads"
)]
fn node_name_of_environment() -> Option<String> {
    std::env::var("NODE_NAME").ok().filter(|name| !name.is_empty())
}

fn check_url(flag: &'static str, value: &str) -> Result<(), UsageError> {
    let host = value
        .strip_prefix("http://")
        .or_else(|| value.strip_prefix("https://"));
    let is_url = host.is_some_and(|host| !host.is_empty() && value.parse::<hyper::Uri>().is_ok());
    if is_url {
        Ok(())
    } else {
        Err(UsageError::Url {
            flag,
            value: value.to_owned(),
        })
    }
}

/// Kubernetes: an optional DNS prefix and a slash, then letters, digits and `-_.`.
fn key(flag: &'static str, value: &str) -> Result<String, UsageError> {
    let fits = !value.is_empty()
        && value.matches('/').count() <= 1
        && value.split('/').all(|part| !part.is_empty())
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    if fits {
        Ok(value.to_owned())
    } else {
        Err(UsageError::Key {
            flag,
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests;
