//! Decides which role a pod gets, in the order of deploy/docs/roles.md, "Role of a pod". A refusal is final: the next
//! source is not tried, since a pod must never get another role than the one that it asks for.

use super::arn::{BaseArn, RoleArn, RoleError, WrittenRole};
use super::namespace::{Asked, NamespaceRules, Stop};
use super::naming::Naming;
use super::own::OwnRoles;
use super::policy::Candidate;
use super::reason::{Allowance, AlsoSearched, Reason, RoleSource};
use super::session::{SessionRules, SessionShape};
use super::web_identity::{self, ROLE_KEY, WebIdentity};
use crate::pods::kubernetes::KeptAnnotations;
use crate::pods::{Inventory, Known, Mirror, Namespace, Pod, PodUid, ServiceAccount};

/// The keys of the annotations that the decision reads.
#[derive(Clone, Debug)]
pub struct AnnotationKeys {
    /// Pod annotation with the role.
    pub role: String,
    /// Pod annotation with the external id.
    pub external_id: String,
    /// Pod annotation with the session's name.
    pub session_name: String,
    /// Namespace annotation with kiam's regular expression.
    pub permitted: String,
    /// Namespace annotation with kube2iam's list.
    pub allowed_roles: String,
}

/// The keys that kube2iam and kiam read by default.
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

/// The configuration by which roles are decided.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The prefix for names; `None` as long as it is not known.
    pub base: Option<BaseArn>,
    /// The role of pods without an annotation.
    pub default_role: Option<WrittenRole>,
    /// The keys of the annotations that the decision reads.
    pub keys: AnnotationKeys,
    /// The rules for reading the policies of namespaces.
    pub namespaces: NamespaceRules,
    /// Whether annotations of service accounts give their pods roles.
    pub web_identity: bool,
    /// Whether no pod gets a role (`--mode firewall`).
    pub firewall: bool,
    /// Whether hostNetwork pods without a role are denied the node's metadata service too.
    pub enforce_host_network: bool,
    /// The configuration of sessions.
    pub sessions: SessionRules,
    /// The roles that no pod gets.
    pub own: OwnRoles,
}

/// The outcome of a decision. `G` is the type of the data about a granted role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<G = Grant> {
    /// The pod gets this role.
    Granted(G),
    /// A role was requested, and denied.
    Refused {
        /// The name that `security-credentials/` lists for the pod. It has only characters that a role's name can
        /// have.
        name: String,
        /// Why it was denied.
        reason: Reason,
    },
    /// No role was requested.
    NoRole(Reason),
    /// An object or fact that the decision needs is not known yet, so the request is held.
    Wait(Reason),
}

/// A granted role, with everything that its session needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: RoleArn,
    /// The pod that gets it.
    pub subject: Subject,
    /// The parameters of its session.
    pub session: SessionShape,
    /// The reason why the pod has the role.
    pub reason: Reason,
}

/// The pod that a session is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The pod's UID.
    pub uid: PodUid,
    /// `namespace/name`
    pub pod: String,
}

impl Decision {
    /// Returns the reason of the decision.
    pub fn reason(&self) -> &Reason {
        match self {
            Self::Granted(grant) => &grant.reason,
            Self::Refused { reason, .. } | Self::NoRole(reason) | Self::Wait(reason) => reason,
        }
    }

    /// Converts the data about a granted role. Every other decision stays the same.
    pub fn map_grant<G>(self, keep: impl FnOnce(Grant) -> G) -> Decision<G> {
        match self {
            Self::Granted(grant) => Decision::Granted(keep(grant)),
            Self::Refused { name, reason } => Decision::Refused { name, reason },
            Self::NoRole(reason) => Decision::NoRole(reason),
            Self::Wait(reason) => Decision::Wait(reason),
        }
    }
}

impl Rules {
    /// Returns the keys of the annotations that the decision reads, for each kind of object. A kind that the decision
    /// does not read has no keys.
    pub fn kept(&self) -> KeptAnnotations {
        let keys = &self.keys;
        let only = |decides: bool, keys: &[&str]| {
            let keys = keys.iter().map(|key| (*key).to_owned());
            if decides { keys.collect() } else { Vec::new() }
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

    /// Says whether a hostNetwork pod is intercepted. It is if it requests a role, even if the role is denied,
    /// because it must not get the node's role instead. A pod whose service account is not known is not intercepted,
    /// because the API server may depend on that pod.
    pub fn intercepts_host_pod(&self, pod: &Pod, account: Option<&ServiceAccount>) -> bool {
        let asks = || {
            matches!(
                self.naming(pod, account),
                Naming::Pod { .. } | Naming::Account { .. }
            )
        };
        // No process belongs to a mirror pod. The processes of its static pod are identified by the hash, once the
        // mirror pod is confirmed.
        let has_processes = pod.mirror != Mirror::Claimed;
        has_processes && pod.host_network && (self.enforce_host_network || (!self.firewall && asks()))
    }

    /// Decides about a pod. `namespace` and `account` are `None` if they are not known (yet).
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
            Naming::NoRole => Ok(Decision::NoRole(Reason::NoRole {
                pod: pod.to_string(),
                key: self.keys.role.clone(),
                also: if self.asks_accounts_of(pod) {
                    AlsoSearched::ServiceAccount {
                        account: account_of(pod),
                    }
                } else {
                    AlsoSearched::Nothing
                },
            })),
        };
        decision.unwrap_or_else(|stopped| *stopped)
    }

    fn annotated(&self, pod: &Pod, namespace: Option<&Namespace>, written: &str) -> Resolved {
        let given_by = RoleSource::Annotation {
            key: self.keys.role.clone(),
        };
        let role = self.arn(pod, &given_by, written, written.parse())?;
        // As in kube2iam, the namespace need not allow a role that the pod gets without an annotation.
        let default_role = self.default_role.as_ref().filter(|_| !pod.host_network);
        let default_role = default_role.and_then(|role| role.resolve(self.base.as_ref()).ok()?);
        let is_default = default_role.as_ref() == Some(&role);
        let allowance = if is_default {
            Allowance::Exempt
        } else {
            self.allowance(pod, namespace, &role, written, false)?
        };
        self.grant(pod, role, given_by, allowance)
    }

    /// Checks the namespace's policy.
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
        let given_by = RoleSource::ServiceAccount {
            key: ROLE_KEY.to_owned(),
            account: account.to_string(),
        };
        let role = self.arn(pod, &given_by, written, written.parse())?;
        let allowance = self.allowance(pod, namespace, &role, written, true)?;
        let identity = WebIdentity::of(pod, account).map_err(|reason| refuse(&role, reason))?;
        let session = self.sessions.web_identity_shape(pod, &self.keys, identity);
        Ok(self.granted(pod, role, given_by, allowance, session))
    }

    fn by_default(&self, pod: &Pod, written: &WrittenRole) -> Resolved {
        let given_by = RoleSource::Default;
        let role = self.arn(pod, &given_by, written.name(), Ok(written.clone()))?;
        self.grant(pod, role, given_by, Allowance::Exempt)
    }

    /// Resolves a role. One of the node's own roles is refused first, even if a policy allows it.
    fn arn(
        &self,
        pod: &Pod,
        given_by: &RoleSource,
        written: &str,
        parsed: Result<WrittenRole, RoleError>,
    ) -> Result<RoleArn, Box<Decision>> {
        match parsed.and_then(|role| role.resolve(self.base.as_ref())) {
            Ok(Some(arn)) => match self.own.refusal(&arn, given_by) {
                Some(reason) => Err(refuse(&arn, reason)),
                None => Ok(arn),
            },
            Ok(None) => Err(Box::new(Decision::Wait(Reason::BaseUnknown {
                role: shortened(written),
            }))),
            Err(error) => Err(Box::new(malformed(pod, given_by.clone(), written, error))),
        }
    }

    fn grant(&self, pod: &Pod, role: RoleArn, given_by: RoleSource, allowance: Allowance) -> Resolved {
        let session = self
            .sessions
            .shape(pod, &self.keys)
            .map_err(|reason| refuse(&role, reason))?;
        Ok(self.granted(pod, role, given_by, allowance, session))
    }

    /// Grants a role if it is known not to be the node's own; otherwise waits.
    fn granted(
        &self,
        pod: &Pod,
        role: RoleArn,
        given_by: RoleSource,
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
                given_by,
                allowance: Box::new(allowance),
            },
            role,
        })
    }
}

/// Returns `namespace/name` of the pod's service account.
fn account_of(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.service_account)
}

/// `Err` is a decision that was reached early, so that `?` can return it.
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

fn malformed(pod: &Pod, given_by: RoleSource, written: &str, error: RoleError) -> Decision {
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
            given_by,
            value: shortened(written),
            error,
        },
    }
}

#[cfg(test)]
pub(super) mod tests;
