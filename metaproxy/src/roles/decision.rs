//! The decision. Order and meaning are those of the README, "Role of a pod"; a refusal is final and never falls
//! through to the next source.

use super::arn::{BaseArn, RoleArn, RoleError, WrittenRole};
use super::namespace::{Asked, NamespaceRules, Stop};
use super::policy::Candidate;
use super::reason::{Allowance, Reason, RoleSource};
use super::session::{SessionRules, SessionShape};
use crate::pods::{Inventory, Known, Namespace, Pod, PodUid};

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
    /// How sessions are made.
    pub sessions: SessionRules,
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

impl Rules {
    /// Decides about the pod with this UID.
    pub fn resolve(&self, inventory: &Inventory, uid: &PodUid) -> Decision {
        match inventory.by_uid(uid) {
            None => Decision::Wait(Reason::PodUnknown { uid: uid.clone() }),
            Some(Known::Ambiguous(pods)) => Decision::NoRole(Reason::Ambiguous {
                uid: uid.clone(),
                pods: pods.iter().map(ToString::to_string).collect(),
            }),
            Some(Known::Pod(pod)) => self.resolve_pod(pod, inventory.namespace(&pod.namespace)),
        }
    }

    /// Whether a hostNetwork pod is to be intercepted: if it asks for a role, whatever comes of that. One that may not
    /// have it, or of which that is not known yet, must not be given the node's in its place.
    pub fn intercepts_host_pod(&self, pod: &Pod) -> bool {
        pod.host_network && annotation(pod, &self.keys.role).is_some()
    }

    /// Decides about a pod; `namespace` is `None` where it is not known (yet).
    pub fn resolve_pod(&self, pod: &Pod, namespace: Option<&Namespace>) -> Decision {
        let key = &self.keys.role;
        let written = annotation(pod, key);
        // What keeps a node alive must go on without us: hostNetwork pods have a role by annotation only.
        let default_role = self.default_role.as_ref().filter(|_| !pod.host_network);
        let decision = match (written, default_role) {
            (Some(written), _) => self.annotated(pod, namespace, written),
            (None, Some(role)) => self.by_default(pod, role),
            (None, None) => {
                return Decision::NoRole(Reason::NoRole {
                    pod: pod.to_string(),
                    key: key.clone(),
                });
            }
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
            let candidate = Candidate::new(&role, written, self.base.as_ref());
            let asked = Asked {
                keys: &self.keys,
                role: &role,
                candidate: &candidate,
                base_is_known: self.base.is_some(),
            };
            self.namespaces
                .check(&asked, &pod.namespace, namespace)
                .map_err(|stop| match stop {
                    Stop::Refuse(reason) => refuse(&role, reason),
                    Stop::Wait(reason) => Box::new(Decision::Wait(reason)),
                })?
        };
        self.grant(pod, role, source_, allowance)
    }

    fn by_default(&self, pod: &Pod, written: &WrittenRole) -> Resolved {
        let source_ = RoleSource::Default;
        let role = self.arn(pod, &source_, written.name(), Ok(written.clone()))?;
        self.grant(pod, role, source_, Allowance::Exempt)
    }

    /// The ARN of what is written.
    fn arn(
        &self,
        pod: &Pod,
        source_: &RoleSource,
        written: &str,
        parsed: Result<WrittenRole, RoleError>,
    ) -> Result<RoleArn, Box<Decision>> {
        match parsed.and_then(|role| role.resolve(self.base.as_ref())) {
            Ok(Some(arn)) => Ok(arn),
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
        Ok(Decision::Granted(Grant {
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
        }))
    }
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

/// An annotation's value; blank counts as none.
pub(super) fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.annotations
        .get(key)
        .map(|value| value.trim())
        .filter(|value| !value.is_empty())
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
mod tests;
