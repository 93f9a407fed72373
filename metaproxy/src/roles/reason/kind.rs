//! The kinds of [`Reason`], without the names that differ from pod to pod. Tests and documents compare kinds, not
//! texts.

use clap::ValueEnum;

use super::Reason;

/// The kind of a reason. The doc comment of each is its meaning in the table of reasons in
/// `deploy/docs/operations.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReasonKind {
    /// The pod has the role
    Granted,
    /// Nothing gives the pod a role: neither its annotation, nor its service account, nor a default role
    NoRole,
    /// The agent serves no roles, because it runs with `--mode firewall`
    Firewall,
    /// The pod's object has not reached the agent yet, or the agent can't read pods
    PodUnknown,
    /// The pod claims to be the mirror pod of a static pod, and no kubelet has confirmed that
    MirrorUnconfirmed,
    /// The namespace has not reached the agent yet, or the agent can't read namespaces
    NamespaceUnknown,
    /// The service account has not reached the agent yet, or the agent can't read service accounts
    ServiceAccountUnknown,
    /// A role is given by its name, and the agent does not know the account that names belong to
    BaseUnknown,
    /// The role is the node's own role, which no pod gets
    NodeRole,
    /// The role is that of `--assume-role-arn`, which no pod gets
    IntermediateRole,
    /// The agent does not know yet which role is the node's own, and gives no credentials until it does
    NodeRoleUnknown,
    /// Several pods have the same UID, so the agent can't tell which of them is the client
    Ambiguous,
    /// The text that names the role is neither a role's name nor a role's ARN
    MalformedRole,
    /// Another annotation of the pod or of its service account is malformed, such as the external id
    MalformedAnnotation,
    /// The namespace has no annotation that allows roles, and one is required
    NoPolicy,
    /// The namespace allows other roles, but not this one
    NotPermitted,
    /// An annotation of the namespace that allows roles is malformed
    MalformedPolicy,
    /// STS would refuse a name of the cluster, node or pod as the value of a session tag
    MalformedTag,
    /// STS does not let the node's role, or the service account, assume this role
    StsDenied,
    /// The API server refuses the agent a token of the pod's service account
    TokenDenied,
    /// STS or the API server can't be reached, fails or throttles
    StsUnavailable,
    /// The pod's annotations have changed so often that its next session has to wait
    SessionsPaced,
}

impl Reason {
    /// Returns the kind of this reason.
    pub fn kind(&self) -> ReasonKind {
        match self {
            Self::Granted { .. } => ReasonKind::Granted,
            Self::NoRole { .. } => ReasonKind::NoRole,
            Self::Firewall => ReasonKind::Firewall,
            Self::PodUnknown { .. } => ReasonKind::PodUnknown,
            Self::MirrorUnconfirmed { .. } => ReasonKind::MirrorUnconfirmed,
            Self::NamespaceUnknown { .. } => ReasonKind::NamespaceUnknown,
            Self::ServiceAccountUnknown { .. } => ReasonKind::ServiceAccountUnknown,
            Self::BaseUnknown { .. } => ReasonKind::BaseUnknown,
            Self::NodeRole { .. } => ReasonKind::NodeRole,
            Self::IntermediateRole { .. } => ReasonKind::IntermediateRole,
            Self::NodeRoleUnknown { .. } => ReasonKind::NodeRoleUnknown,
            Self::Ambiguous { .. } => ReasonKind::Ambiguous,
            Self::MalformedRole { .. } => ReasonKind::MalformedRole,
            Self::MalformedAnnotation { .. } => ReasonKind::MalformedAnnotation,
            Self::NoPolicy { .. } => ReasonKind::NoPolicy,
            Self::NotPermitted { .. } => ReasonKind::NotPermitted,
            Self::MalformedPolicy { .. } => ReasonKind::MalformedPolicy,
            Self::MalformedTag { .. } => ReasonKind::MalformedTag,
            Self::StsDenied { .. } => ReasonKind::StsDenied,
            Self::TokenDenied { .. } => ReasonKind::TokenDenied,
            Self::StsUnavailable { .. } => ReasonKind::StsUnavailable,
            Self::SessionsPaced { .. } => ReasonKind::SessionsPaced,
        }
    }
}
