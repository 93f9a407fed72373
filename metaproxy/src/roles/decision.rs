//! The decision. Order and meaning are those of deploy/docs/roles.md, "Role of a pod"; a refusal is final and never falls
//! through to the next source.

use super::arn::{BaseArn, RoleArn, RoleError, WrittenRole};
use super::namespace::{Asked, NamespaceRules, Stop};
use super::naming::Naming;
use super::own::OwnRoles;
use super::policy::Candidate;
use super::reason::{Allowance, AlsoAsked, Reason, RoleSource};
use super::session::{SessionRules, SessionShape};
use super::web_identity::{self, ROLE_KEY, WebIdentity};
use crate::pods::kubernetes::KeptAnnotations;
use crate::pods::{Inventory, Known, Mirror, Namespace, Pod, PodUid, ServiceAccount};

/// The annotations that are read.
#[derive(Clone, Debug)]
pub struct AnnotationKeys {
    /// Pod: the role.
    pub role: String,
    /// Pod: the external id.
    pub external_id: String,
    /// Pod: the session's name.
    pub session_name: String,
    /// Namespace: kiam's regular expression.
    pub permitted: String,
    /// Namespace: kube2iam's list.
    pub allowed_roles: String,
}

/// The names that kube2iam and kiam have made known.
impl Default for AnnotationKeys {
    fn default() -> Self {
        let key = |name: &str| format!("iam.amazonaws.com/{name}");
        Self {
            role: key("role"),
            external_id: key("external-id"),
            session_name: key("session-name"),
            permitted: key("permitted"),
            allowed_roles: key("allowed-roles"),
        }
    }
}

/// The configuration that decides.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Prefix for names; `None` as long as it is not known.
    pub base: Option<BaseArn>,
    /// For pods without an annotation.
    pub default_role: Option<WrittenRole>,
    /// The annotations that are read.
    pub keys: AnnotationKeys,
    /// What namespaces have to say.
    pub namespaces: NamespaceRules,
    /// Whether service accounts are asked for their pods' roles.
    pub web_identity: bool,
    /// Whether no pod gets a role, whatever it asks for.
    pub firewall: bool,
    /// Whether hostNetwork pods without a role are kept from the node's metadata service too.
    pub enforce_host_network: bool,
    /// How sessions are made.
    pub sessions: SessionRules,
    /// The roles that no pod gets.
    pub own: OwnRoles,
}

/// What a pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// This role.
    Granted(Grant),
    /// A role was asked for, and denied. `name` is what the pod is shown.
    Refused {
        /// A name that is safe to show.
        name: String,
        /// Why.
        reason: Reason,
    },
    /// No role was asked for.
    NoRole(Reason),
    /// It can't be told yet: the request is held.
    Wait(Reason),
}

/// A role, and how it is had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: RoleArn,
    /// Whom for.
    pub subject: Subject,
    /// How its session is made.
    pub session: SessionShape,
    /// Why it is granted.
    pub reason: Reason,
}

/// The pod behind a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod's UID.
    pub uid: PodUid,
    /// `namespace/name`
    pub pod: String,
}

impl Decision {
    /// Why.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Granted(grant) => &grant.reason,
            Self::Refused { reason, .. } | Self::NoRole(reason) | Self::Wait(reason) => reason,
        }
    }
}

impl Rules {
    /// The annotations that decide, by what they stand on; none where that is not asked.
    pub fn kept(&self) -> KeptAnnotations {
        let keys = &self.keys;
        let only = |is_asked: bool, keys: &[&str]| {
            let keys = keys.iter().map(|key| (*key).to_owned());
            if is_asked { keys.collect() } else { Vec::new() }
        };
        KeptAnnotations {
            pods: only(true, &[&keys.role, &keys.external_id, &keys.session_name]),
            namespaces: only(self.namespaces.required, &[&keys.permitted, &keys.allowed_roles]),
            service_accounts: only(self.web_identity, &web_identity::KEYS),
        }
    }

    /// Decides about the pod with this UID.
    pub fn resolve(&self, inventory: &Inventory, uid: &PodUid) -> Decision {
        if self.firewall {
            return Decision::NoRole(Reason::Firewall);
        }
        match inventory.by_uid(uid) {
            None => Decision::Wait(Reason::PodUnknown { uid: uid.clone() }),
            Some(Known::Ambiguous(pods)) => Decision::NoRole(Reason::Ambiguous {
                uid: uid.clone(),
                pods: pods.iter().map(ToString::to_string).collect(),
            }),
            Some(Known::Pod(pod)) if pod.mirror == Mirror::Claimed => {
                Decision::Wait(Reason::MirrorUnconfirmed { pod: pod.to_string() })
            }
            Some(Known::Pod(pod)) => self.resolve_pod(
                pod,
                inventory.namespace(&pod.namespace),
                inventory.service_account(pod),
            ),
        }
    }

    /// Whether a hostNetwork pod is to be intercepted: if it asks for a role, whatever comes of that. One that may not
    /// have it must not be given the node's in its place. One whose service account is not known is left alone: it may be
    /// what the API server is waiting for.
    pub fn intercepts_host_pod(&self, pod: &Pod, account: Option<&ServiceAccount>) -> bool {
        let asks = || {
            matches!(
                self.naming(pod, account),
                Naming::Pod { .. } | Naming::Account { .. }
            )
        };
        // No process runs as a mirror pod: those of its static pod are known by the hash, once it is confirmed.
        let has_processes = pod.mirror != Mirror::Claimed;
        has_processes && pod.host_network && (self.enforce_host_network || (!self.firewall && asks()))
    }

    /// Decides about a pod; `namespace` and `account` are `None` where they are not known (yet).
    pub fn resolve_pod(
        &self,
        pod: &Pod,
        namespace: Option<&Namespace>,
        account: Option<&ServiceAccount>,
    ) -> Decision {
        let decision = match self.naming(pod, account) {
            Naming::Pod { written } => self.annotated(pod, namespace, written),
            Naming::Account { account, written } => self.by_service_account(pod, namespace, account, written),
            Naming::UnknownAccount => Ok(Decision::Wait(Reason::ServiceAccountUnknown {
                account: account_of(pod),
            })),
            Naming::Default(role) => self.by_default(pod, role),
            Naming::Nobody => Ok(Decision::NoRole(Reason::NoRole {
                pod: pod.to_string(),
                key: self.keys.role.clone(),
                also: if self.asks_accounts_of(pod) {
                    AlsoAsked::ServiceAccount {
                        account: account_of(pod),
                    }
                } else {
                    AlsoAsked::Nobody
                },
            })),
        };
        decision.unwrap_or_else(|stopped| *stopped)
    }

    fn annotated(&self, pod: &Pod, namespace: Option<&Namespace>, written: &str) -> Resolved {
        let source_ = RoleSource::Annotation {
            key: self.keys.role.clone(),
        };
        let role = self.arn(pod, &source_, written, written.parse())?;
        // As kube2iam has it: what a pod gets without asking needs no leave.
        let default_role = self.default_role.as_ref().filter(|_| !pod.host_network);
        let default_role = default_role.and_then(|role| role.resolve(self.base.as_ref()).ok()?);
        let is_default = default_role.as_ref() == Some(&role);
        let allowance = if is_default {
            Allowance::Exempt
        } else {
            self.allowance(pod, namespace, &role, written, false)?
        };
        self.grant(pod, role, source_, allowance)
    }

    /// Whether the namespace lets its pods have a role.
    fn allowance(
        &self,
        pod: &Pod,
        namespace: Option<&Namespace>,
        role: &RoleArn,
        written: &str,
        is_trusted: bool,
    ) -> Result<Allowance, Box<Decision>> {
        let candidate = Candidate::new(role, written, self.base.as_ref());
        let asked = Asked {
            keys: &self.keys,
            role,
            candidate: &candidate,
            base_is_known: self.base.is_some(),
            is_trusted,
        };
        self.namespaces
            .check(&asked, &pod.namespace, namespace)
            .map_err(|stop| match stop {
                Stop::Refuse(reason) => refuse(role, reason),
                Stop::Wait(reason) => Box::new(Decision::Wait(reason)),
            })
    }

    fn by_service_account(
        &self,
        pod: &Pod,
        namespace: Option<&Namespace>,
        account: &ServiceAccount,
        written: &str,
    ) -> Resolved {
        let source_ = RoleSource::ServiceAccount {
            key: ROLE_KEY.to_owned(),
            account: account.to_string(),
        };
        let role = self.arn(pod, &source_, written, written.parse())?;
        let allowance = self.allowance(pod, namespace, &role, written, true)?;
        let identity = WebIdentity::of(pod, account).map_err(|reason| refuse(&role, reason))?;
        let session = self.sessions.web_identity_shape(pod, &self.keys, identity);
        Ok(self.granted(pod, role, source_, allowance, session))
    }

    fn by_default(&self, pod: &Pod, written: &WrittenRole) -> Resolved {
        let source_ = RoleSource::Default;
        let role = self.arn(pod, &source_, written.name(), Ok(written.clone()))?;
        self.grant(pod, role, source_, Allowance::Exempt)
    }

    /// The ARN of what is written. One of the node's own roles is refused before anything else is asked about it.
    fn arn(
        &self,
        pod: &Pod,
        source_: &RoleSource,
        written: &str,
        parsed: Result<WrittenRole, RoleError>,
    ) -> Result<RoleArn, Box<Decision>> {
        match parsed.and_then(|role| role.resolve(self.base.as_ref())) {
            Ok(Some(arn)) => match self.own.refusal(&arn, source_) {
                Some(reason) => Err(refuse(&arn, reason)),
                None => Ok(arn),
            },
            Ok(None) => Err(Box::new(Decision::Wait(Reason::BaseUnknown {
                role: shortened(written),
            }))),
            Err(error) => Err(Box::new(malformed(pod, source_.clone(), written, error))),
        }
    }

    fn grant(&self, pod: &Pod, role: RoleArn, source_: RoleSource, allowance: Allowance) -> Resolved {
        let session = self
            .sessions
            .shape(pod, &self.keys)
            .map_err(|reason| refuse(&role, reason))?;
        Ok(self.granted(pod, role, source_, allowance, session))
    }

    /// Grants a role, once it is known not to be the node's own.
    fn granted(
        &self,
        pod: &Pod,
        role: RoleArn,
        source_: RoleSource,
        allowance: Allowance,
        session: SessionShape,
    ) -> Decision {
        if let Some(reason) = self.own.to_wait_for(&role) {
            return Decision::Wait(reason);
        }
        Decision::Granted(Grant {
            subject: Subject {
                uid: pod.uid.clone(),
                pod: pod.to_string(),
            },
            session,
            reason: Reason::Granted {
                role: role.clone(),
                source_,
                allowance: Box::new(allowance),
            },
            role,
        })
    }
}

/// `namespace/name`
fn account_of(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.service_account)
}

/// A decision, or one that was reached before the end of the way.
type Resolved = Result<Decision, Box<Decision>>;

fn refuse(role: &RoleArn, reason: Reason) -> Box<Decision> {
    Box::new(Decision::Refused {
        name: role.name().to_owned(),
        reason,
    })
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

fn malformed(pod: &Pod, source_: RoleSource, written: &str, error: RoleError) -> Decision {
    let last = written.rsplit('/').next().unwrap_or_default();
    let shown: String = last
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "+=,.@_-".contains(*c))
        .take(64)
        .collect();
    Decision::Refused {
        name: if shown.is_empty() {
            "malformed-role".to_owned()
        } else {
            shown
        },
        reason: Reason::MalformedRole {
            pod: pod.to_string(),
            source_,
            value: shortened(written),
            error,
        },
    }
}

#[cfg(test)]
pub(super) mod tests;
