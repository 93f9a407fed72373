//! The decision. Order and meaning are those of the README, "Role of a pod"; a refusal is final and never falls
//! through to the next source.

use super::arn::{BaseArn, RoleArn, RoleError, parse_role};
use super::policy::{AllowedRolesStyle, Candidate, PermittedMatch, PolicyError, allowed, permitted};
use super::reason::{Reason, RoleSource};
use super::session_name::SessionName;
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
    /// Prefix for names.
    pub base: Option<BaseArn>,
    /// For pods without an annotation.
    pub default_role: Option<RoleArn>,
    /// The annotations that are read.
    pub keys: AnnotationKeys,
    /// Whether the namespace must allow an annotated role.
    pub policy_required: bool,
    /// How `allowed-roles` is read.
    pub allowed_roles_style: AllowedRolesStyle,
    /// How `permitted` is compared.
    pub permitted_match: PermittedMatch,
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

/// A role and everything that shapes its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The role.
    pub role: RoleArn,
    /// Whom for.
    pub subject: Subject,
    /// The session's name.
    pub session_name: SessionName,
    /// `ExternalId` of the call, if any.
    pub external_id: Option<String>,
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
        match (written, default_role) {
            (Some(written), _) => self.annotated(pod, namespace, written),
            (None, Some(role)) => self.grant(pod, role.clone(), RoleSource::Default),
            (None, None) => Decision::NoRole(Reason::NoRole {
                pod: pod.to_string(),
                key: key.clone(),
            }),
        }
    }

    fn annotated(&self, pod: &Pod, namespace: Option<&Namespace>, written: &str) -> Decision {
        let source_ = RoleSource::Annotation {
            key: self.keys.role.clone(),
        };
        let role = match parse_role(written, self.base.as_ref()) {
            Ok(role) => role,
            Err(error) => return malformed(pod, source_, written, error),
        };
        if self.policy_required {
            let Some(namespace) = namespace else {
                return Decision::Wait(Reason::NamespaceUnknown {
                    namespace: pod.namespace.clone(),
                });
            };
            if let Err(reason) = self.check_policy(namespace, &role) {
                return Decision::Refused {
                    name: role.name().to_owned(),
                    reason,
                };
            }
        }
        self.grant(pod, role, source_)
    }

    /// One annotation that allows the role is enough; one that can't be read allows nothing, and the other does not
    /// make up for it.
    fn check_policy(&self, namespace: &Namespace, role: &RoleArn) -> Result<(), Reason> {
        let keys = &self.keys;
        let candidate = Candidate::new(role, self.base.as_ref());
        let unreadable = |key: &String| {
            let (namespace, key) = (namespace.name.clone(), key.clone());
            move |error: PolicyError| Reason::MalformedPolicy {
                namespace,
                key,
                error,
            }
        };
        let mut asked = Vec::new();
        let mut is_allowed = false;
        if let Some(annotation) = namespace.annotations.get(&keys.permitted) {
            asked.push(keys.permitted.as_str());
            is_allowed |= permitted(annotation, self.permitted_match, &candidate)
                .map_err(unreadable(&keys.permitted))?;
        }
        if let Some(annotation) = namespace.annotations.get(&keys.allowed_roles) {
            asked.push(keys.allowed_roles.as_str());
            is_allowed |= allowed(annotation, self.allowed_roles_style, &candidate)
                .map_err(unreadable(&keys.allowed_roles))?;
        }
        if is_allowed {
            return Ok(());
        }
        let (role, namespace) = (role.clone(), namespace.name.clone());
        Err(if asked.is_empty() {
            Reason::NoPolicy {
                role,
                namespace,
                permitted: keys.permitted.clone(),
                allowed_roles: keys.allowed_roles.clone(),
            }
        } else {
            Reason::NotPermitted {
                role,
                namespace,
                key: asked.join(" and "),
            }
        })
    }

    fn grant(&self, pod: &Pod, role: RoleArn, source_: RoleSource) -> Decision {
        let external_id = match self.external_id(pod) {
            Ok(external_id) => external_id,
            Err(reason) => {
                return Decision::Refused {
                    name: role.name().to_owned(),
                    reason,
                };
            }
        };
        let named = annotation(pod, &self.keys.session_name);
        Decision::Granted(Grant {
            subject: Subject {
                uid: pod.uid.clone(),
                pod: pod.to_string(),
            },
            session_name: named.map_or_else(
                || SessionName::of_pod(&pod.namespace, &pod.name),
                SessionName::cleaned,
            ),
            external_id,
            reason: Reason::Granted {
                role: role.clone(),
                source_,
            },
            role,
        })
    }

    /// STS: 2 to 1224 of `[\w+=,.@:\/-]`. Never mended: another id is another party's.
    fn external_id(&self, pod: &Pod) -> Result<Option<String>, Reason> {
        let Some(id) = annotation(pod, &self.keys.external_id) else {
            return Ok(None);
        };
        let fits = (2..=1224).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte));
        if fits {
            return Ok(Some(id.to_owned()));
        }
        Err(Reason::MalformedAnnotation {
            pod: pod.to_string(),
            key: self.keys.external_id.clone(),
            problem: "an external id is 2 to 1224 letters, digits and characters of _+=,.@:/-".to_owned(),
        })
    }
}

/// An annotation's value; blank counts as none.
fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
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
            value: written.chars().take(200).collect(),
            error,
        },
    }
}

#[cfg(test)]
mod tests;
