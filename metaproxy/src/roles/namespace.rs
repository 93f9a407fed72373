//! Checks whether the annotations of a namespace allow a role to its pods.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::RoleArn;
use super::decision::AnnotationKeys;
use super::policy::{AllowedRolesStyle, Candidate, Letters, PermittedMatch, Policy, PolicyError};
use super::reason::{Allowance, Reason};
use crate::pods::Namespace;

/// The rules for reading the policies of namespaces.
#[derive(Clone, Debug, Default)]
pub struct NamespaceRules {
    /// Whether the namespace must allow the role of a pod's annotation.
    pub required: bool,
    /// The syntax of the entries of `allowed-roles`.
    pub allowed_roles_style: AllowedRolesStyle,
    /// The way in which `permitted` is compared with roles.
    pub permitted_match: PermittedMatch,
    /// The cache of the policies that were read.
    pub read: PolicyCache,
}

/// The role for which a namespace's policy is checked.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub keys: &'a AnnotationKeys,
    pub role: &'a RoleArn,
    pub candidate: &'a Candidate<'a>,
    /// Whether the base is known, so that names in the policy can be compared with the role.
    pub base_is_known: bool,
    /// Whether the role needs no policy, because its own trust policy names the service account.
    pub is_trusted: bool,
}

/// The reason why the policy does not allow a role.
#[derive(Debug)]
pub(super) enum Stop {
    Refuse(Reason),
    Wait(Reason),
}

impl NamespaceRules {
    /// Checks the policy. One annotation that allows the role is enough. If one of them is malformed, no role is
    /// allowed, even if the other one allows it.
    pub(super) fn check(
        &self,
        asked: &Asked<'_>,
        name: &str,
        namespace: Option<&Namespace>,
    ) -> Result<Allowance, Stop> {
        if !self.required {
            return Ok(Allowance::NotAsked);
        }
        let Some(namespace) = namespace else {
            let namespace = name.to_owned();
            return Err(Stop::Wait(Reason::NamespaceUnknown { namespace }));
        };
        let policies = self.opinions(asked.keys, asked.candidate, namespace);
        for opinion in &policies {
            if let Err(error) = &opinion.allows {
                return Err(Stop::Refuse(Reason::MalformedPolicy {
                    namespace: namespace.name.clone(),
                    key: opinion.key.clone(),
                    error: error.clone(),
                }));
            }
        }
        let allowing = policies
            .iter()
            .find_map(|opinion| Some((&opinion.key, opinion.allows.clone().ok()??)));
        if let Some((key, entry)) = allowing {
            return Ok(Allowance::By {
                entry,
                key: key.clone(),
                namespace: namespace.name.clone(),
            });
        }
        let (role, namespace) = (asked.role.clone(), namespace.name.clone());
        if policies.is_empty() && asked.is_trusted {
            return Ok(Allowance::TrustPolicy);
        }
        if policies.is_empty() {
            return Err(Stop::Refuse(Reason::NoPolicy {
                role,
                namespace,
                permitted: asked.keys.permitted.clone(),
                allowed_roles: asked.keys.allowed_roles.clone(),
            }));
        }
        if !asked.base_is_known {
            // A name in the policy may turn out to be this role once the base is known.
            return Err(Stop::Wait(Reason::BaseUnknown {
                role: role.to_string(),
            }));
        }
        let each: Vec<String> = policies
            .iter()
            .map(|opinion| format!("its annotation {} ({})", opinion.key, opinion.shown))
            .collect();
        Err(Stop::Refuse(Reason::NotPermitted {
            role,
            namespace,
            policies: each.join(" or "),
        }))
    }

    /// Returns the opinion of each of the namespace's annotations about a role, in the order in which they are
    /// checked.
    pub fn opinions(
        &self,
        keys: &AnnotationKeys,
        candidate: &Candidate<'_>,
        namespace: &Namespace,
    ) -> Vec<Opinion> {
        let kinds = [
            (PolicyKind::Permitted(self.permitted_match), &keys.permitted),
            (
                PolicyKind::AllowedRoles(self.allowed_roles_style),
                &keys.allowed_roles,
            ),
        ];
        let opinion = |(kind, key): (PolicyKind, &String)| {
            let annotation = namespace.annotations.get(key)?;
            let read = self.read.get(kind, annotation);
            let policy = read
                .get_or_init(|| kind.read(annotation, Letters::AsWritten))
                .as_ref();
            Some(Opinion {
                key: key.clone(),
                shown: policy.map(shown).unwrap_or_default(),
                allows: policy
                    .map(|policy| policy.allows(candidate).map(str::to_owned))
                    .map_err(Clone::clone),
            })
        };
        kinds.into_iter().filter_map(opinion).collect()
    }
}

/// The opinion of one annotation of a namespace about a role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// The annotation's key.
    pub key: String,
    /// The entries, shortened; empty if the annotation is malformed.
    pub shown: String,
    /// The entry that allows the role, if one does; or why the annotation is malformed.
    pub allows: Result<Option<String>, PolicyError>,
}

/// Writes the first entries of a policy, each shortened, so that they fit into a sentence.
fn shown(policy: &Policy) -> String {
    const ENTRIES: usize = 5;
    const LENGTH: usize = 80;
    let mut shown: Vec<String> = policy
        .entries()
        .iter()
        .take(ENTRIES)
        .map(|entry| format!("{:?}", entry.chars().take(LENGTH).collect::<String>()))
        .collect();
    match policy.entries().len() {
        0 => shown.push("empty".to_owned()),
        all if all > ENTRIES => shown.push(format!("and {} more", all - ENTRIES)),
        _ => {}
    }
    shown.join(", ")
}

/// The two kinds of policy annotations, each with the way in which it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PolicyKind {
    /// kiam's `permitted`.
    Permitted(PermittedMatch),
    /// kube2iam's `allowed-roles`.
    AllowedRoles(AllowedRolesStyle),
}

impl PolicyKind {
    /// Reads an annotation.
    ///
    /// # Errors
    /// If the annotation is malformed. Such an annotation must allow nothing.
    pub fn read(self, annotation: &str, letters: Letters) -> Result<Policy, PolicyError> {
        match self {
            Self::Permitted(style) => Policy::permitted(annotation, style, letters),
            Self::AllowedRoles(style) => Policy::allowed_roles(annotation, style, letters),
        }
    }
}

/// One policy. It is read once, even if several callers need it at the same time.
type Once = OnceLock<Result<Policy, PolicyError>>;

type Read = HashMap<(PolicyKind, String), Arc<Once>>;

/// Keeps policies by their text, since reading one costs far more than checking it. Clones share the cache.
#[derive(Clone, Debug, Default)]
pub struct PolicyCache(Arc<Mutex<Read>>);

impl PolicyCache {
    /// The maximum number of entries, which is more than a node has namespaces. The cache is emptied when it is full.
    const MAX: usize = 256;

    /// Returns the policy of an annotation; the caller reads it with [`PolicyKind::read`] if it is new.
    fn get(&self, kind: PolicyKind, annotation: &str) -> Arc<Once> {
        let mut policies = self.lock();
        let key = (kind, annotation.to_owned());
        if policies.len() >= Self::MAX && !policies.contains_key(&key) {
            policies.clear();
        }
        Arc::clone(policies.entry(key).or_default())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Read> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
