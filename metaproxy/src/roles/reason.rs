//! The reasons why a pod has a role or has none. Response bodies, log lines, events and explanations all show the
//! text of a [`Reason`], so that they never contradict each other. Each text says what failed, on which object, why,
//! and what to do.

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

/// The source of a pod's role.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RoleSource {
    /// An annotation of the pod gives it.
    #[error("annotation {key} of the pod")]
    Annotation {
        /// The annotation's key.
        key: String,
    },
    /// An annotation of the pod's service account gives it.
    #[error("annotation {key} of service account {account}")]
    ServiceAccount {
        /// The annotation's key.
        key: String,
        /// `namespace/name`
        account: String,
    },
    /// `--default-role` gives it.
    #[error("--default-role")]
    Default,
}

/// The reason why the namespace does not prevent a granted role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowance {
    /// `--namespace-policy=off` is set.
    NotAsked,
    /// The role is the `--default-role`, which is exempt from namespaces' policies, as in kube2iam.
    Exempt,
    /// The role is that of the service account, and the namespace has no policy: IAM's trust policy names the service
    /// account.
    TrustPolicy,
    /// An entry of one of the namespace's annotations allows the role.
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
            Self::NotAsked => {
                f.write_str("; the policy of the namespace is not checked (--namespace-policy=off)")
            }
            Self::TrustPolicy => {
                f.write_str("; the namespace has no policy, so the trust policy of the role decides alone")
            }
            Self::Exempt => f.write_str("; the default role is exempt from the policy of the namespace"),
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
    /// Says whether a role was requested and denied. The pod's owner has to correct something, or have it corrected.
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
    /// Says whether a request for credentials is answered with status 503, because the pod can get them later without
    /// a correction.
    pub fn is_unavailable(&self) -> bool {
        let is_final = matches!(
            self,
            Self::Granted { .. } | Self::NoRole { .. } | Self::Firewall | Self::Ambiguous { .. }
        );
        !is_final && !self.is_refusal()
    }
}

/// The object beside the pod that was searched for a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AlsoSearched {
    /// No other object was searched.
    Nothing,
    /// The pod's service account was searched.
    ServiceAccount {
        /// `namespace/name`
        account: String,
    },
}

impl fmt::Display for AlsoSearched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::ServiceAccount { account } => {
                write!(f, ", its service account {account} has no annotation {ROLE_KEY}")
            }
        }
    }
}

/// The end of a text about an object or fact that the agent does not know yet. Watches deliver it within a second, or
/// fail.
const RETRY: &str = "retry in a second; if this lasts, `metaproxy status` on the node says why";

/// The reason why a pod has a role, has none, or gets no session for it.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// The pod has the role.
    #[error("role {role} from {given_by}{allowance}")]
    Granted {
        /// The role.
        role: RoleArn,
        /// The source that gives it.
        given_by: RoleSource,
        /// Why the namespace does not prevent it.
        allowance: Box<Allowance>,
    },
    /// Nothing gives the pod a role.
    #[error(
        "pod {pod} has no role: it has no annotation {key}{also}, and no --default-role applies to it; annotate the pod if it \
         needs one"
    )]
    NoRole {
        /// `namespace/name`
        pod: String,
        /// The pod annotation that would give it a role.
        key: String,
        /// The other object that was searched.
        also: AlsoSearched,
    },
    /// The agent serves no roles.
    #[error(
        "no pod of this node has a role: the agent runs with --mode=firewall, which only keeps the node's credentials from \
         pods; --mode=enforce serves roles"
    )]
    Firewall,
    /// The pod is not in the inventory.
    #[error("the pod with UID {uid} is not known yet: its object has not reached the agent; {RETRY}")]
    PodUnknown {
        /// The UID, read from the caller's cgroup.
        uid: PodUid,
    },
    /// The pod claims to be a mirror pod, and no kubelet has confirmed that.
    #[error(
        "pod {pod} claims by its annotations to be the mirror pod of a static pod, and no kubelet has confirmed that yet (it makes \
         its node the owner, and writes a status); if this is no static pod, remove its kubernetes.io/config.* annotations"
    )]
    MirrorUnconfirmed {
        /// `namespace/name`
        pod: String,
    },
    /// The namespace is not in the inventory.
    #[error(
        "namespace {namespace} is not known yet, and with --namespace-policy=required it decides which roles its pods may have; \
         {RETRY}"
    )]
    NamespaceUnknown {
        /// The namespace.
        namespace: String,
    },
    /// The service account is not in the inventory.
    #[error(
        "service account {account} is not known yet, and with --web-identity=on it may give its pods a role; {RETRY}"
    )]
    ServiceAccountUnknown {
        /// `namespace/name`
        account: String,
    },
    /// A role is given by name, by the pod or by the namespace's policy, and the account of names is not known.
    #[error(
        "role {role:?} cannot be resolved yet: names of roles, on pods and in the policies of namespaces, belong to the account \
         of the node's own role, which is not known yet; write whole ARNs, or set --base-role-arn"
    )]
    BaseUnknown {
        /// The role as written, shortened.
        role: String,
    },
    /// The role is the node's own.
    #[error(
        "role {role} from {given_by} is refused: it is the node's own role, which no pod gets, whatever its trust policy \
         allows; name a role that is made for the pod"
    )]
    NodeRole {
        /// The role.
        role: RoleArn,
        /// The source that gives it.
        given_by: RoleSource,
    },
    /// The role is the one that the agent assumes first.
    #[error(
        "role {role} from {given_by} is refused: it is the role of --assume-role-arn, which may assume the roles of all \
         pods, so no pod gets it; name a role that is made for the pod"
    )]
    IntermediateRole {
        /// The role.
        role: RoleArn,
        /// The source that gives it.
        given_by: RoleSource,
    },
    /// A role is given before it is known which role is the node's own.
    #[error(
        "role {role} cannot be granted yet: it may be the node's own role, which no pod gets, and that role is not known \
         yet{}; `metaproxy doctor` on the node says why",
        problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default()
    )]
    NodeRoleUnknown {
        /// The role.
        role: RoleArn,
        /// Why the node's own role is not known.
        problem: Option<String>,
    },
    /// Several pods have the same UID.
    #[error(
        "pods {} share the UID {uid}, so none of them gets credentials; delete all but one, or give each a metadata.uid of its own",
        pods.join(" and ")
    )]
    Ambiguous {
        /// The UID.
        uid: PodUid,
        /// `namespace/name` of each.
        pods: Vec<String>,
    },
    /// The text that names the role is malformed.
    #[error(
        "pod {pod} gets no role: {given_by} names the role {value:?}, which cannot be used: {error}; correct it"
    )]
    MalformedRole {
        /// `namespace/name`
        pod: String,
        /// The source that gives the role.
        given_by: RoleSource,
        /// The role as written, shortened.
        value: String,
        /// Why it is malformed.
        error: RoleError,
    },
    /// Another annotation of the pod, or of its service account, is malformed.
    #[error("no credentials: annotation {key} of {object} cannot be used: {problem}; correct it")]
    MalformedAnnotation {
        /// `namespace/name` of a pod; of another object, with its kind before it.
        object: String,
        /// The annotation's key.
        key: String,
        /// Why it is malformed.
        problem: String,
    },
    /// The namespace has no policy, and one is required.
    #[error(
        "role {role} is not permitted in namespace {namespace}: the namespace has neither annotation {permitted} nor \
         {allowed_roles}, and --namespace-policy=required needs one that allows the role; annotate the namespace"
    )]
    NoPolicy {
        /// The role.
        role: RoleArn,
        /// The namespace.
        namespace: String,
        /// The key of kiam's annotation.
        permitted: String,
        /// The key of kube2iam's annotation.
        allowed_roles: String,
    },
    /// The namespace's policy allows other roles only.
    #[error(
        "role {role} is not permitted in namespace {namespace}: {policies} does not allow it, and \
         --namespace-policy=required needs an annotation that does; allow it there, or name another role"
    )]
    NotPermitted {
        /// The role.
        role: RoleArn,
        /// The namespace.
        namespace: String,
        /// The namespace's annotations with their entries, shortened.
        policies: String,
    },
    /// The namespace's policy is malformed.
    #[error("no role is permitted in namespace {namespace} until its annotation {key} is corrected: {error}")]
    MalformedPolicy {
        /// The namespace.
        namespace: String,
        /// The annotation's key.
        key: String,
        /// Why it is malformed.
        error: PolicyError,
    },
    /// A session tag would have a value that STS refuses.
    #[error(
        "no credentials: session tag {key} of pod {pod} cannot be {value:?}: STS accepts up to 256 letters, digits, spaces and \
         characters of _.:/=+-@; change that name, or set --session-tags=off"
    )]
    MalformedTag {
        /// `namespace/name`
        pod: String,
        /// The tag's key.
        key: &'static str,
        /// The value that it would have, shortened.
        value: String,
    },
    /// STS denies the role.
    #[error("STS refused role {role}: {message}; `metaproxy explain` says what to check")]
    StsDenied {
        /// The role.
        role: RoleArn,
        /// The error that STS returned.
        message: String,
    },
    /// The API server denies the token that STS needs.
    #[error(
        "no credentials for role {role}: the API server refuses a {message}; check the agent's right to create \
         serviceaccounts/token, and the admission policies"
    )]
    TokenDenied {
        /// The role.
        role: RoleArn,
        /// The token that was requested, and the error that the API server returned.
        message: String,
    },
    /// STS, or the API server for a token, can't be reached, fails or throttles.
    #[error("no credentials for role {role} at the moment: {message}; the agent keeps trying")]
    StsUnavailable {
        /// The role.
        role: RoleArn,
        /// The error.
        message: String,
    },
    /// The pod has had too many new sessions.
    #[error(
        "no credentials for role {role} at the moment: new sessions of pod {pod} are paced, because what shapes its session \
         (role, external id, session name, service account) changed again and again; a pod gets {at_once} at once and then \
         one in {} s, so leave its annotations as they are and try again",
        interval.as_secs()
    )]
    SessionsPaced {
        /// The role.
        role: RoleArn,
        /// `namespace/name`
        pod: String,
        /// The number of new sessions that a pod can get at once.
        at_once: u32,
        /// The time from one new session to the next after these.
        interval: Duration,
    },
}
