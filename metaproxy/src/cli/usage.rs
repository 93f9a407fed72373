//! What flags mean together, checked before anything is started.

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

/// Flags that parse one by one, but not together or not as what they stand for.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum UsageError {
    /// No pod to explain.
    #[error(
        "explain: of which pod? NAMESPACE/POD names one of this node, --all shows all of them, and --manifests PATH explains \
         manifests without an agent"
    )]
    WhichPod,
    /// A name that no pod has.
    #[error("{0:?}: a pod is named as NAMESPACE/POD, or as POD with --namespace")]
    PodName(String),
    /// No pods.
    #[error(
        "no source of pods: this process does not run in a pod of a cluster, and there is no $KUBECONFIG; give \
         --kubeconfig FILE, or --manifests DIR with Pod manifests"
    )]
    NoSource,
    /// A node without a name.
    #[error(
        "--node-name: the API server is asked for the pods of this node, which must be named as in `kubectl get nodes`"
    )]
    NoNode,
    /// A name that no node has.
    #[error(
        "--node-name {0:?}: not the name of a node, which is up to 253 small letters, digits, dashes and dots"
    )]
    NodeName(String),
    /// A guard in the way of what is to be observed.
    #[error(
        "--guard with --mode observe: pods are to reach the node's metadata service as without metaproxy, and a guard \
         would keep them from it"
    )]
    GuardWhileObserving,
    /// A guard that does nothing.
    #[error("--guard off: a guard that is to do nothing need not be started")]
    IdleGuard,
    /// Tokens without an API server.
    #[error(
        "--web-identity on: tokens of service accounts come from the API server, and --manifests asks none"
    )]
    NoTokens,
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
        "--listen-address {0}: pods cannot reach a loopback, link-local, multicast, broadcast or unspecified address; give one of the \
         node's own"
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
    /// A URL with a user or a password. It is not shown.
    #[error(
        "{0}: the URL has a user or a password before an @. It would be shown in logs, and neither STS nor the metadata service asks for \
         one; give it without"
    )]
    UserInfo(&'static str),
    /// A region that none can be called.
    #[error("--region {0:?}: not a region, which looks like eu-west-1; leave the flag away to have it found")]
    Region(String),
    /// One annotation for two things.
    #[error(
        "{0} and {1} are both {2:?}: what stands there would be read in two ways; give them different keys"
    )]
    SameKey(&'static str, &'static str, String),
    /// The metadata service.
    #[error("--imds-endpoint {value:?}: {error}")]
    Imds {
        /// As given.
        value: String,
        /// What is wrong.
        error: BadEndpoint,
    },
    /// A pattern.
    #[error("--allow-path: {0}")]
    AllowPath(BadPattern),
    /// A name that tags can't have.
    #[error(
        "--cluster-name {0:?}: a session tag has up to 256 letters, digits, blanks and characters of _.:/=+-@"
    )]
    ClusterName(String),
    /// An ARN of something else.
    #[error("--cluster-arn {value:?}: {error}")]
    ClusterArn {
        /// As given.
        value: String,
        /// What is wrong.
        error: NotACluster,
    },
    /// No ARN.
    #[error(
        "--session-tags eks: EKS Pod Identity's tags hold the ARN of the cluster; give it with --cluster-arn, such as \
         arn:aws:eks:eu-west-1:123456789012:cluster/NAME"
    )]
    NoClusterArn,
    /// Two names.
    #[error(
        "--cluster-name {name:?}: --cluster-arn is that of cluster {of_arn:?}; leave out --cluster-name, or give the same"
    )]
    OtherCluster {
        /// By `--cluster-name`.
        name: String,
        /// By `--cluster-arn`.
        of_arn: String,
    },
    /// A key of an annotation or a taint that can't be one.
    #[error("{flag} {value:?}: not a key, which looks like iam.amazonaws.com/role")]
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
            cgroup: self.place.cgroup.clone(),
            cgroup_root: self.place.cgroup_root.clone(),
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
            // Who a pod is does not matter where none gets anything.
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
        // Where no role is served STS is never asked, and no region has to be found.
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

    /// It becomes a part of STS' name (RFC 1123: a label).
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

/// The pod that this process runs in, else the first file that kubectl would use.
pub(super) fn kubeconfig_of_environment() -> Option<KubeconfigSource> {
    if variable(API_SERVER).is_some() {
        return Some(KubeconfigSource::InCluster);
    }
    // Several files may stand there; the first is the one that counts for what is in all of them.
    let files = variable("KUBECONFIG")?;
    let first = std::env::split_paths(&files).find(|file| !file.as_os_str().is_empty())?;
    Some(KubeconfigSource::File(first))
}

/// Whether a variable is set to nothing, which is as if it were not set.
#[expect(
    clippy::disallowed_methods,
    reason = "clap does not tell a flag from its variable"
)]
fn is_variable_empty(name: &str) -> bool {
    std::env::var(name).is_ok_and(|value| value.trim().is_empty())
}

/// The address of the API server among the cluster's Services: a variable of each pod.
const API_SERVER: &str = "KUBERNETES_SERVICE_HOST";

/// The family of a cluster's Services, by the API server's address among them: that of its pods too. IPv4 without one, or
/// with a name.
pub(super) fn services_family(api_server: Option<&str>) -> Family {
    match api_server.map(str::parse) {
        Some(Ok(IpAddr::V6(_))) => Family::V6,
        _ => Family::V4,
    }
}

/// What a DaemonSet sets by the downward API, beside METAPROXY_NODE_NAME, which clap reads.
pub(super) fn node_name_of_environment() -> Option<String> {
    variable("NODE_NAME")
}

/// A variable of the environment; an empty one counts as none.
#[expect(
    clippy::disallowed_methods,
    reason = "conventions of Kubernetes, which are no flags of ours"
)]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Asked before anything else of a URL, as what is wrong with it is shown with the URL. No endpoint has an @ elsewhere.
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

/// Kubernetes: an optional DNS prefix and a slash, then letters, digits and `-_.`.
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
