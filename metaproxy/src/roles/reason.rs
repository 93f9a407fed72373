//! Why a pod has the role it has, or none. The one place where this is put into words: response bodies, log lines and
//! events all show a [`Reason`].

use thiserror::Error;

use super::RoleArn;
use super::arn::RoleError;
use super::policy::PolicyError;
use crate::pods::PodUid;

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

/// One outcome of resolving a pod's role, or of obtaining its session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Reason {
    /// Granted.
    #[error("role {role} from {source_}")]
    Granted {
        /// Which.
        role: RoleArn,
        /// Whence.
        source_: RoleSource,
    },
    /// Nobody named a role.
    #[error("pod {pod} has no role: it has no annotation {key}, and there is no --default-role")]
    NoRole {
        /// `namespace/name`
        pod: String,
        /// The annotation that would name one.
        key: String,
    },
    /// The pod is not in the inventory.
    #[error("the pod with UID {uid} is not known yet")]
    PodUnknown {
        /// Of the caller's cgroup.
        uid: PodUid,
    },
    /// Its namespace is not in the inventory.
    #[error(
        "namespace {namespace} is not known yet, and --namespace-policy=required asks it which roles its pods may have"
    )]
    NamespaceUnknown {
        /// Which.
        namespace: String,
    },
    /// Several pods have its UID.
    #[error("pods {} share the UID {uid}, so none of them gets credentials", pods.join(" and "))]
    Ambiguous {
        /// The UID.
        uid: PodUid,
        /// `namespace/name` of each.
        pods: Vec<String>,
    },
    /// The connection came from an address that is not the pod's.
    #[error("the connection of pod {pod} came from an address that is not (yet) known as the pod's")]
    ForeignAddress {
        /// `namespace/name`
        pod: String,
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
    /// Another annotation of the pod is unusable.
    #[error("annotation {key} of {pod} cannot be used: {problem}")]
    MalformedAnnotation {
        /// `namespace/name`
        pod: String,
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
        "role {role} is not permitted in namespace {namespace}: its annotation {key} does not allow it, and \
         --namespace-policy=required asks for that"
    )]
    NotPermitted {
        /// Which.
        role: RoleArn,
        /// The namespace.
        namespace: String,
        /// The annotations that were asked.
        key: String,
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
    /// STS does not let us have it.
    #[error("STS refused role {role}: {message}")]
    StsDenied {
        /// Which.
        role: RoleArn,
        /// What STS says.
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
}
