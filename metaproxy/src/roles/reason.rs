//! Why a pod has the role it has, or none. The one place where this is put into words: response bodies, log lines and
//! events all show a [`Reason`].

mod kind;

use std::fmt;
use std::time::Duration;

use thiserror::Error;

use super::RoleArn;
use super::arn::RoleError;
use super::policy::PolicyError;
use super::web_identity::ROLE_KEY;
use crate::pods::PodUid;

pub use self::kind::ReasonKind;

/// Where a pod's role is named.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RoleSource {
    /// On the pod.
    #[error("annotation {key} of the pod")]
    Annotation {
        /// The annotation's key.
        key: String,
    },
    /// On its service account.
    #[error("annotation {key} of service account {account}")]
    ServiceAccount {
        /// The annotation's key.
        key: String,
        /// The service account.
        account: String,
    },
    /// By flag.
    #[error("--default-role")]
    Default,
}

/// What the namespace had to say about a role that is granted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// `--namespace-policy=off`
    NotAsked,
    /// It is the `--default-role`, to which no namespace is asked.
    Exempt,
    /// It is a service account's, and the namespace has no policy.
    TrustPolicy,
    /// An entry of an annotation allows it.
    By {
        /// The entry, as written.
        entry: String,
        /// The annotation's key.
        key: String,
        /// The namespace.
        namespace: String,
    },
}

impl fmt::Display for Allowance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAsked => f.write_str("; the namespace is not asked (--namespace-policy=off)"),
            Self::TrustPolicy => f.write_str(
                "; the namespace has no policy, and the role's trust policy names the service account",
            ),
            Self::Exempt => f.write_str("; the namespace is not asked about the default role"),
            Self::By {
                entry,
                key,
                namespace,
            } => {
                write!(
                    f,
                    "; {entry:?} in annotation {key} of namespace {namespace} allows it"
                )
            }
        }
    }
}

impl Reason {
    /// Whether a role was asked for and denied, which is for the pod's owner to mend.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::MalformedRole { .. }
            | Self::MalformedAnnotation { .. }
            | Self::NoPolicy { .. }
            | Self::NotPermitted { .. }
            | Self::MalformedPolicy { .. }
            | Self::MalformedTag { .. }
            | Self::NodeRole { .. }
            | Self::IntermediateRole { .. }
            | Self::StsDenied { .. }
            | Self::TokenDenied { .. } => true,
            Self::Granted { .. }
            | Self::NoRole { .. }
            | Self::Firewall
            | Self::PodUnknown { .. }
            | Self::MirrorUnconfirmed { .. }
            | Self::NamespaceUnknown { .. }
            | Self::ServiceAccountUnknown { .. }
            | Self::BaseUnknown { .. }
            | Self::NodeRoleUnknown { .. }
            | Self::Ambiguous { .. }
            | Self::StsUnavailable { .. }
            | Self::SessionsPaced { .. } => false,
        }
    }
}

impl Reason {
    /// Whether a pod that asks for credentials is answered 503: it may have them later, as things are.
    pub fn is_unavailable(&self) -> bool {
        let is_final = matches!(
            self,
            Self::Granted { .. } | Self::NoRole { .. } | Self::Firewall | Self::Ambiguous { .. }
        );
        !is_final && !self.is_refusal()
    }
}

/// Where a role was looked for beside the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlsoAsked {
    /// Nowhere.
    Nobody,
    /// Its service account.
    ServiceAccount {
        /// `namespace/name`
        account: String,
    },
}

impl fmt::Display for AlsoAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => Ok(()),
            Self::ServiceAccount { account } => {
                write!(f, ", its service account {account} no annotation {ROLE_KEY}")
            }
        }
    }
}

/// One outcome of resolving a pod's role, or of obtaining its session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// Granted.
    #[error("role {role} from {source_}{allowance}")]
    Granted {
        /// Which.
        role: RoleArn,
        /// Whence.
        source_: RoleSource,
        /// What the namespace says.
        allowance: Box<Allowance>,
    },
    /// Nobody named a role.
    #[error("pod {pod} has no role: it has no annotation {key}{also}, and no --default-role is for it")]
    NoRole {
        /// `namespace/name`
        pod: String,
        /// The annotation that would name one.
        key: String,
        /// Where else one was looked for.
        also: AlsoAsked,
    },
    /// Nobody gets one.
    #[error(
        "no pod has a role here: the agent runs with --mode=firewall, which only keeps the node's credentials from pods"
    )]
    Firewall,
    /// The pod is not in the inventory.
    #[error("the pod with UID {uid} is not known yet")]
    PodUnknown {
        /// Of the caller's cgroup.
        uid: PodUid,
    },
    /// It says that it is the mirror pod of a static pod.
    #[error(
        "pod {pod} says by its annotations that it is the mirror pod of a static pod, and no kubelet has confirmed that (yet): \
         a kubelet makes its node the owner, and writes a status"
    )]
    MirrorUnconfirmed {
        /// `namespace/name`
        pod: String,
    },
    /// Its namespace is not in the inventory.
    #[error(
        "namespace {namespace} is not known yet, and --namespace-policy=required asks it which roles its pods may have"
    )]
    NamespaceUnknown {
        /// Which.
        namespace: String,
    },
    /// Its service account is not in the inventory.
    #[error("service account {account} is not known yet, and --web-identity=on asks it for its pods' role")]
    ServiceAccountUnknown {
        /// `namespace/name`
        account: String,
    },
    /// A name, before it is known in which account to look for it.
    #[error(
        "the ARN of role {role:?} is not known yet: names are roles of the account of the node's own role, which could not \
         be found out so far; --base-role-arn tells it"
    )]
    BaseUnknown {
        /// As written, shortened.
        role: String,
    },
    /// The node's own role.
    #[error(
        "role {role} from {source_} is refused: it is the node's own role, which no pod gets, whatever its trust policy \
         allows; name a role that is made for the pod"
    )]
    NodeRole {
        /// Which.
        role: RoleArn,
        /// Whence.
        source_: RoleSource,
    },
    /// The role that the agent assumes first.
    #[error(
        "role {role} from {source_} is refused: it is the role of --assume-role-arn, which may assume the roles of all \
         pods, so no pod gets it; name a role that is made for the pod"
    )]
    IntermediateRole {
        /// Which.
        role: RoleArn,
        /// Whence.
        source_: RoleSource,
    },
    /// A role, before it is known which one is the node's own.
    #[error(
        "whether role {role} is the node's own, which no pod gets, is not known yet{}",
        problem.as_ref().map(|problem| format!(": {problem}")).unwrap_or_default()
    )]
    NodeRoleUnknown {
        /// Which.
        role: RoleArn,
        /// Why the node's own role is not known.
        problem: Option<String>,
    },
    /// Several pods have its UID.
    #[error("pods {} share the UID {uid}, so none of them gets credentials", pods.join(" and "))]
    Ambiguous {
        /// The UID.
        uid: PodUid,
        /// `namespace/name` of each.
        pods: Vec<String>,
    },
    /// The role is no role.
    #[error("{source_} of {pod} names the role {value:?}, which cannot be used: {error}")]
    MalformedRole {
        /// `namespace/name`
        pod: String,
        /// Whence.
        source_: RoleSource,
        /// As written, shortened.
        value: String,
        /// What is wrong.
        error: RoleError,
    },
    /// Another annotation of the pod, or of its service account, is unusable.
    #[error("annotation {key} of {object} cannot be used: {problem}")]
    MalformedAnnotation {
        /// `namespace/name`, after its kind where it is no pod
        object: String,
        /// Which.
        key: String,
        /// What is wrong.
        problem: String,
    },
    /// The namespace says nothing about roles.
    #[error(
        "role {role} is not permitted in namespace {namespace}: it has neither annotation {permitted} nor \
         {allowed_roles}, and --namespace-policy=required asks for one that allows the role"
    )]
    NoPolicy {
        /// Which.
        role: RoleArn,
        /// The namespace.
        namespace: String,
        /// kiam's annotation.
        permitted: String,
        /// kube2iam's annotation.
        allowed_roles: String,
    },
    /// The namespace allows other roles.
    #[error(
        "role {role} is not permitted in namespace {namespace}: {policies} does not allow it, and \
         --namespace-policy=required asks for that"
    )]
    NotPermitted {
        /// Which.
        role: RoleArn,
        /// The namespace.
        namespace: String,
        /// The annotations that were asked, with their entries, shortened.
        policies: String,
    },
    /// The namespace's policy can't be read.
    #[error("no role is permitted in namespace {namespace}: its annotation {key} cannot be used: {error}")]
    MalformedPolicy {
        /// The namespace.
        namespace: String,
        /// Which annotation.
        key: String,
        /// What is wrong.
        error: PolicyError,
    },
    /// A value that session tags can't have.
    #[error(
        "session tag {key} of {pod} cannot be {value:?}: STS takes up to 256 letters, digits, blanks and characters of \
         _.:/=+-@; --session-tags=off gives credentials without tags"
    )]
    MalformedTag {
        /// `namespace/name`
        pod: String,
        /// The tag's key.
        key: &'static str,
        /// What it would be, shortened.
        value: String,
    },
    /// STS does not let us have it.
    #[error("STS refused role {role}: {message}")]
    StsDenied {
        /// Which.
        role: RoleArn,
        /// What STS says.
        message: String,
    },
    /// The API server gives no token to show to STS.
    #[error("no credentials for role {role}: the API server refuses a {message}")]
    TokenDenied {
        /// Which.
        role: RoleArn,
        /// Of whom, and what it says.
        message: String,
    },
    /// STS can't be asked at the moment.
    #[error("no credentials for role {role} at the moment: {message}")]
    StsUnavailable {
        /// Which.
        role: RoleArn,
        /// What failed.
        message: String,
    },
    /// The pod has had too many new sessions for another one now.
    #[error(
        "no credentials for role {role} at the moment: new sessions of pod {pod} are paced, because what shapes its session \
         (role, external id, session name, service account) changed again and again; a pod gets {at_once} at once and then \
         one in {} s, so leave its annotations as they are and try again",
        interval.as_secs()
    )]
    SessionsPaced {
        /// Which.
        role: RoleArn,
        /// `namespace/name`
        pod: String,
        /// New sessions that a pod gets at once.
        at_once: u32,
        /// From one to the next after those.
        interval: Duration,
    },
}
