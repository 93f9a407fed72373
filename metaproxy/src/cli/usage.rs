//! What flags mean together, checked before anything is started.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

use super::{ImdsV1, NamespacePolicy, RunArgs, Switch};
use crate::agent::Settings;
use crate::credentials::sts::StsSettings;
use crate::imds::Version1;
use crate::imds::path::{BadPattern, Paths};
use crate::imds::upstream::{BadEndpoint, Endpoint};
use crate::roles::arn::RoleError;
use crate::roles::{
    AnnotationKeys, BaseArn, CommonTags, NamespaceRules, PolicyCache, RoleArn, Rules, SessionRules,
    WrittenRole, is_tag_value,
};

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
    /// The metadata service.
    #[error("--imds-endpoint {value:?}: {error}")]
    Imds {
        /// As given.
        value: String,
        /// What is wrong.
        error: BadEndpoint,
    },
    /// A pattern.
    #[error("--allow-path: not a regular expression: {0}")]
    AllowPath(BadPattern),
    /// A name that tags can't have.
    #[error(
        "--cluster-name {0:?}: a session tag has up to 256 letters, digits, blanks and characters of _.:/=+-@"
    )]
    ClusterName(String),
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
        let node_name = self.node_name.clone().or_else(node_name_of_environment);
        let rules = self.rules(node_name.clone())?;
        Ok(Settings {
            sts: self.sts(&rules.sessions)?,
            node_name,
            manifests,
            cgroup: self.cgroup.clone(),
            cgroup_root: self.cgroup_root.clone(),
            listen_addresses: self.listen_addresses()?,
            listen_port: self.listen_port,
            rules,
            imds: self.imds()?,
            paths: Paths::allowing(&self.allow_path).map_err(UsageError::AllowPath)?,
            version1: match self.imds_v1 {
                ImdsV1::Auto => Version1::Unknown,
                ImdsV1::Allow => Version1::Allowed,
                ImdsV1::Deny => Version1::Denied,
            },
            connections_per_pod: self.max_connections_per_pod as usize,
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

    fn rules(&self, node: Option<String>) -> Result<Rules, UsageError> {
        let base: Option<BaseArn> = role("--base-role-arn", self.base_role_arn.as_ref())?;
        let default_role: Option<WrittenRole> = role("--default-role", self.default_role.as_ref())?;
        if let (Some(default_role), Some(text)) = (&default_role, &self.default_role) {
            default_role
                .resolve(base.as_ref())
                .map_err(bad_role("--default-role", text))?;
        }
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
            namespaces: NamespaceRules {
                required: self.namespace_policy == NamespacePolicy::Required,
                allowed_roles_style: self.allowed_roles_style,
                permitted_match: self.permitted_match,
                read: PolicyCache::default(),
            },
            sessions: SessionRules {
                scope: self.session_scope,
                tags: self.tags()?,
                node,
            },
        })
    }

    fn tags(&self) -> Result<Option<CommonTags>, UsageError> {
        let cluster = self.cluster_name.clone();
        if let Some(name) = cluster
            .as_ref()
            .filter(|name| name.is_empty() || !is_tag_value(name))
        {
            return Err(UsageError::ClusterName(name.clone()));
        }
        Ok((self.session_tags == Switch::On).then_some(CommonTags { cluster }))
    }

    fn sts(&self, sessions: &SessionRules) -> Result<StsSettings, UsageError> {
        if !(Duration::from_secs(15 * 60)..=Duration::from_secs(3600)).contains(&self.session_duration) {
            return Err(UsageError::Duration(self.session_duration));
        }
        if let Some(endpoint) = &self.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        let through: Option<RoleArn> = role("--assume-role-arn", self.assume_role_arn.as_ref())?;
        Ok(StsSettings {
            region: self.region.clone(),
            endpoint: self.sts_endpoint.clone(),
            imds_endpoint: self.imds()?.to_string(),
            duration: self.session_duration,
            through,
            own_name: sessions.of_node(),
        })
    }

    fn imds(&self) -> Result<Endpoint, UsageError> {
        let value = &self.imds_endpoint;
        value.parse().map_err(|error| UsageError::Imds {
            value: value.clone(),
            error,
        })
    }
}

fn bad_role(flag: &'static str, value: &str) -> impl FnOnce(RoleError) -> UsageError {
    let value = value.to_owned();
    move |error| UsageError::Role { flag, value, error }
}

fn role<T: FromStr<Err = RoleError>>(
    flag: &'static str,
    text: Option<&String>,
) -> Result<Option<T>, UsageError> {
    text.map(|text| text.parse().map_err(bad_role(flag, text)))
        .transpose()
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
