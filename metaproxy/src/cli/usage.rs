//! What flags mean together, checked before anything is started.

use std::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use super::{NamespacePolicy, RunArgs};
use crate::agent::Settings;
use crate::credentials::sts::StsSettings;
use crate::roles::arn::{RoleError, parse_role};
use crate::roles::{AnnotationKeys, BaseArn, Rules};

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
