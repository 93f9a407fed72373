//! Validates flags that clap cannot validate, and combinations of flags.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use metaproxy_common::verdict::Family;
use thiserror::Error;

use super::{ImdsV1, RunArgs, TokenPolicy};
use crate::agent::{Mode, PodSource, Settings};
use crate::apiserver::KubeconfigSource;
use crate::credentials::sts::StsSettings;
use crate::identify::Limits;
use crate::imds::ImdsV1Policy;
use crate::imds::path::{BadPattern, Paths};
use crate::imds::upstream::{BadEndpoint, Endpoint};
use crate::intercept::guard::GuardMode;
use crate::roles::arn::RoleError;
use crate::roles::{NotACluster, OwnRoles, RoleArn, RoleId, Rules, SessionRules};

/// The errors of flags that are malformed or contradict another flag.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UsageError {
    /// `explain` is given no pod.
    #[error(
        "explain: no pod is given: NAMESPACE/POD explains one of this node, --all shows all of them, and --manifests PATH \
         explains manifests without an agent"
    )]
    WhichPod,
    /// The name is not a valid pod name.
    #[error("{0:?}: a pod is named as NAMESPACE/POD, or as POD with --namespace")]
    PodName(String),
    /// Neither an API server nor manifests are given.
    #[error(
        "no source of pods: this process does not run in a pod of a cluster, and $KUBECONFIG is not set; give \
         --kubeconfig FILE, or --manifests DIR with Pod manifests"
    )]
    NoSource,
    /// The node's name is not given.
    #[error(
        "--node-name is not given: the agent reads the pods of its own node only; give the name that `kubectl get nodes` shows"
    )]
    NoNode,
    /// The name is not a valid node name.
    #[error(
        "--node-name {0:?}: not the name of a node, which has up to 253 small letters, digits, dashes and dots"
    )]
    NodeName(String),
    /// A guard would refuse the connections that the agent observes.
    #[error(
        "--guard with --mode observe: a guard would refuse the connections that are to be observed; leave out --guard"
    )]
    GuardWhileObserving,
    /// The guard would do nothing.
    #[error("--guard off: this guard would do nothing; give another value, or do not start it")]
    IdleGuard,
    /// Roles of service accounts need an API server.
    #[error(
        "--web-identity on: tokens of service accounts come from the API server, which --manifests does without; leave out one of \
         the two"
    )]
    NoTokens,
    /// The role or the prefix of roles is malformed.
    #[error("{flag} {value:?}: {error}")]
    Role {
        /// The flag.
        flag: &'static str,
        /// The value as given.
        value: String,
        /// The reason why it is malformed.
        error: RoleError,
    },
    /// Pods cannot reach the address.
    #[error(
        "--listen-address {0}: pods cannot reach a loopback, link-local, multicast, broadcast or unspecified address; give an \
         address of the node"
    )]
    Unreachable(IpAddr),
    /// An address is given twice.
    #[error("--listen-address {0} is given twice; give it once")]
    Twice(IpAddr),
    /// STS refuses the duration.
    #[error(
        "--session-duration {}: STS takes 15m to 1h if one role assumes another, as the node's role assumes the pod's \
         (role chaining); give a duration in that range", humantime::format_duration(*.0)
    )]
    Duration(Duration),
    /// The endpoint is not a URL.
    #[error("{flag} {value:?}: not a URL that begins with http:// or https://")]
    Url {
        /// The flag.
        flag: &'static str,
        /// The value as given.
        value: String,
    },
    /// The URL has a user or a password. The error does not show the URL.
    #[error(
        "{0}: the URL has a user or a password before an @, which logs would show; neither STS nor the metadata service needs one, \
         so leave it out"
    )]
    UserInfo(&'static str),
    /// The region is malformed.
    #[error(
        "--region {0:?}: not a region, which looks like eu-west-1; correct it, or leave it out and the agent finds it"
    )]
    Region(String),
    /// Two annotations have the same key.
    #[error("{0} and {1} are both {2:?}: one annotation cannot have two meanings; give them different keys")]
    SameKey(&'static str, &'static str, String),
    /// The URL of the metadata service is malformed.
    #[error("--imds-endpoint {value:?}: {error}")]
    Imds {
        /// The value as given.
        value: String,
        /// The reason why it is malformed.
        error: BadEndpoint,
    },
    /// The pattern is malformed, or matches nothing.
    #[error("--allow-path: {0}")]
    AllowPath(BadPattern),
    /// The cluster's name is not a valid value of a tag.
    #[error(
        "--cluster-name {0:?}: not the value of a session tag, which has up to 256 letters, digits, spaces and characters of \
         _.:/=+-@"
    )]
    ClusterName(String),
    /// The text is not the ARN of a cluster.
    #[error("--cluster-arn {value:?}: {error}")]
    ClusterArn {
        /// The value as given.
        value: String,
        /// The reason why it is malformed.
        error: NotACluster,
    },
    /// The cluster's ARN is not given.
    #[error(
        "--session-tags eks: EKS Pod Identity's tags hold the ARN of the cluster; give it with --cluster-arn, such as \
         arn:aws:eks:eu-west-1:123456789012:cluster/NAME"
    )]
    NoClusterArn,
    /// The cluster's name and its ARN contradict each other.
    #[error(
        "--cluster-name {name:?}: --cluster-arn is that of cluster {of_arn:?}; leave out --cluster-name, or give the same name"
    )]
    OtherCluster {
        /// The name in `--cluster-name`.
        name: String,
        /// The name in `--cluster-arn`.
        of_arn: String,
    },
    /// The text is not a valid key of an annotation or a taint.
    #[error("{flag} {value:?}: not a key of annotations or taints, which looks like iam.amazonaws.com/role")]
    Key {
        /// The flag.
        flag: &'static str,
        /// The value as given.
        value: String,
    },
}

impl RunArgs {
    /// Validates the flags without reading the state of the machine.
    ///
    /// # Errors
    /// Returns the error of the first flag that is malformed or contradicts another flag.
    pub fn settings(&self) -> Result<Settings, UsageError> {
        let node_name = self.node_name.clone().or_else(node_name_of_environment);
        let pods = self.pods(node_name.as_deref())?;
        let rules = self.roles.rules(node_name.clone(), self.mode == Mode::Firewall)?;
        let sts = self.sts(&rules.sessions)?;
        let own = OwnRoles {
            intermediate: sts.intermediate_role.as_ref().map(RoleId::from),
            ..OwnRoles::unknown()
        };
        Ok(Settings {
            sts,
            pods,
            mode: self.mode,
            guard: self.guard()?,
            cgroup: self.cgroups.cgroup.clone(),
            cgroup_root: self.cgroups.cgroup_root.clone(),
            listen_addresses: self.listen_addresses()?,
            listen_port: self.listen_port,
            pod_family: services_family(variable(API_SERVER).as_deref()),
            rules: Rules { own, ..rules },
            token_policy_required: self.token_policy == TokenPolicy::Required,
            imds: self.imds()?,
            paths: self.paths()?,
            imds_v1: match self.imds_v1 {
                ImdsV1::Auto => ImdsV1Policy::Unknown,
                ImdsV1::Allow => ImdsV1Policy::Allowed,
                ImdsV1::Deny => ImdsV1Policy::Denied,
            },
            limits: Limits {
                connections: self.max_connections_per_pod as usize,
                connection_rate: self.max_connection_rate_per_pod,
                request_rate: self.max_request_rate_per_pod,
                head: self.max_head_size as usize * 1024,
                head_timeout: self.head_timeout,
                idle: self.idle_timeout,
            },
            admin: self.admin_address.0,
            runtime_dir: self.runtime_dir.clone(),
        })
    }

    fn paths(&self) -> Result<Paths, UsageError> {
        let patterns = self.allow_path.iter().filter(|pattern| !pattern.is_empty());
        let patterns: Vec<String> = patterns.cloned().collect();
        if patterns.is_empty() && !self.allow_path.is_empty() && !is_variable_empty("METAPROXY_ALLOW_PATH") {
            return Err(UsageError::AllowPath(BadPattern::Nothing(String::new())));
        }
        Paths::new(self.pass_through, &patterns).map_err(UsageError::AllowPath)
    }

    fn guard(&self) -> Result<GuardMode, UsageError> {
        match (self.mode, self.guard) {
            (Mode::Observe, None | Some(GuardMode::Off)) => Ok(GuardMode::Off),
            (Mode::Observe, Some(_)) => Err(UsageError::GuardWhileObserving),
            (Mode::Enforce | Mode::Firewall, guard) => Ok(guard.unwrap_or(GuardMode::Auto)),
        }
    }

    fn pods(&self, node: Option<&str>) -> Result<PodSource, UsageError> {
        if let Some(dir) = &self.manifests {
            if self.roles.asks_service_accounts() {
                return Err(UsageError::NoTokens);
            }
            return Ok(PodSource::Manifests {
                dir: dir.clone(),
                node: node.map(str::to_owned),
            });
        }
        let given = self.kubeconfig.clone().map(KubeconfigSource::File);
        let kubeconfig = match given.or_else(kubeconfig_of_environment) {
            Some(kubeconfig) => kubeconfig,
            // With --mode firewall no pod gets credentials, so the agent needs no source of pods.
            None if self.mode == Mode::Firewall => return Ok(PodSource::None),
            None => return Err(UsageError::NoSource),
        };
        let node = node.ok_or(UsageError::NoNode)?;
        let fits = (1..=253).contains(&node.len())
            && node
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte));
        if !fits {
            return Err(UsageError::NodeName(node.to_owned()));
        }
        let startup_taint = self.startup_taint.as_ref();
        Ok(PodSource::ApiServer {
            kubeconfig,
            node: node.to_owned(),
            startup_taint: startup_taint
                .map(|taint| key("--startup-taint", taint))
                .transpose()?,
        })
    }

    fn listen_addresses(&self) -> Result<Vec<IpAddr>, UsageError> {
        for (index, ip) in self.listen_address.iter().enumerate() {
            let unreachable = match ip {
                IpAddr::V4(ip) => {
                    ip.is_loopback()
                        || ip.is_unspecified()
                        || ip.is_link_local()
                        || ip.is_multicast()
                        || ip.is_broadcast()
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

    fn sts(&self, sessions: &SessionRules) -> Result<StsSettings, UsageError> {
        if !(Duration::from_secs(15 * 60)..=Duration::from_secs(3600)).contains(&self.session_duration) {
            return Err(UsageError::Duration(self.session_duration));
        }
        if let Some(endpoint) = &self.sts_endpoint {
            check_url("--sts-endpoint", endpoint)?;
        }
        let intermediate_role: Option<RoleArn> = role("--assume-role-arn", self.assume_role_arn.as_ref())?;
        // With --mode firewall STS is never called, so any region will do and none is looked up.
        let unasked = (self.mode == Mode::Firewall).then(|| "us-east-1".to_owned());
        Ok(StsSettings {
            region: self.region()?.or(unasked),
            endpoint: self.sts_endpoint.clone(),
            imds_endpoint: self.imds()?.to_string(),
            duration: self.session_duration,
            intermediate_role,
            own_session_name: sessions.of_node(),
        })
    }

    /// Returns the region. It must be a valid label of a host name (RFC 1123), because it becomes part of the host
    /// name of STS.
    pub(super) fn region(&self) -> Result<Option<String>, UsageError> {
        let is_label = |region: &str| {
            let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            (1..=63).contains(&region.len())
                && region.bytes().all(is_fine)
                && !region.starts_with('-')
                && !region.ends_with('-')
        };
        match &self.region {
            Some(region) if !is_label(region) => Err(UsageError::Region(region.clone())),
            region => Ok(region.clone()),
        }
    }

    fn imds(&self) -> Result<Endpoint, UsageError> {
        imds_endpoint(&self.imds_endpoint)
    }
}

pub(super) fn imds_endpoint(value: &str) -> Result<Endpoint, UsageError> {
    check_user_info("--imds-endpoint", value)?;
    value.parse().map_err(|error| UsageError::Imds {
        value: value.to_owned(),
        error,
    })
}

pub(super) fn bad_role(flag: &'static str, value: &str) -> impl FnOnce(RoleError) -> UsageError {
    let value = value.to_owned();
    move |error| UsageError::Role { flag, value, error }
}

pub(super) fn role<T: FromStr<Err = RoleError>>(
    flag: &'static str,
    text: Option<&String>,
) -> Result<Option<T>, UsageError> {
    text.map(|text| text.parse().map_err(bad_role(flag, text)))
        .transpose()
}

/// Returns the API server of the pod in which this process runs. Outside of a pod, returns the API server of the
/// first kubeconfig file that kubectl would use.
pub(super) fn kubeconfig_of_environment() -> Option<KubeconfigSource> {
    if variable(API_SERVER).is_some() {
        return Some(KubeconfigSource::InCluster);
    }
    // The variable may list several files. kubectl merges them, and the first one takes precedence ("Organizing
    // Cluster Access Using kubeconfig Files", Kubernetes documentation).
    let files = variable("KUBECONFIG")?;
    let first = std::env::split_paths(&files).find(|file| !file.as_os_str().is_empty())?;
    Some(KubeconfigSource::File(first))
}

/// Returns whether a variable is set to an empty text, which counts as unset.
#[expect(
    clippy::disallowed_methods,
    reason = "clap does not distinguish a flag from its variable"
)]
fn is_variable_empty(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value.trim().is_empty())
}

/// The environment variable that Kubernetes sets in each pod to the Service address of the API server.
const API_SERVER: &str = "KUBERNETES_SERVICE_HOST";

/// Returns the address family of a cluster's Services, which is the family of its pods too. The family is that of the
/// API server's address. It is IPv4 if there is no address, or if the address is a host name.
pub(super) fn services_family(api_server: Option<&str>) -> Family {
    match api_server.map(str::parse) {
        Some(Ok(IpAddr::V6(_))) => Family::V6,
        _ => Family::V4,
    }
}

/// Returns the node's name from `NODE_NAME`, which DaemonSets set by the downward API. clap reads METAPROXY_NODE_NAME.
pub(super) fn node_name_of_environment() -> Option<String> {
    variable("NODE_NAME")
}

/// Returns an environment variable. An empty variable counts as unset.
#[expect(
    clippy::disallowed_methods,
    reason = "these variables are conventions of Kubernetes, not flags of metaproxy"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Refuses a URL with a user or a password. This check comes first, because other errors show the URL. An @ always
/// counts as user information, because no valid endpoint contains an @ elsewhere.
fn check_user_info(flag: &'static str, value: &str) -> Result<(), UsageError> {
    if value.contains('@') {
        Err(UsageError::UserInfo(flag))
    } else {
        Ok(())
    }
}

pub(super) fn check_url(flag: &'static str, value: &str) -> Result<(), UsageError> {
    check_user_info(flag, value)?;
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

/// Checks the key of an annotation or a taint: an optional DNS prefix and a slash, then letters, digits and `-_.` (Kubernetes
/// documentation, "Annotations").
pub(super) fn key(flag: &'static str, value: &str) -> Result<String, UsageError> {
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
