//! Finds hints on the probable intention of an operator. A hint needs evidence: a pattern that would match if it were
//! read in another way, a key that is similar to one that is read, or an annotation on the wrong object.

mod near;
mod slips;

use self::near::Near;
use super::Subject;
use crate::pods::annotations::closest_key;
use crate::pods::{Annotations, CredentialVariable, Pod};
use crate::roles::web_identity;
use crate::roles::{AnnotationKeys, Reason, RoleArn, Rules};

/// The maximum number of hints in an explanation. Operators would not read a longer list.
const MAX_HINTS: usize = 8;

/// Returns all hints for a pod, the likeliest first. `asked` is the role that it requests, as written and as
/// resolved.
pub(super) fn of(
    rules: &Rules,
    subject: &Subject<'_>,
    reason: &Reason,
    asked: Option<(&str, &RoleArn)>,
) -> Vec<String> {
    let mut hints = Vec::new();
    match reason {
        Reason::NotPermitted { .. } | Reason::MalformedPolicy { .. } => {
            if let (Some((written, role)), Some(namespace)) = (asked, subject.namespace) {
                let near = Near { rules, role, written };
                hints.extend(near.permitted(namespace.annotations.get(&rules.keys.permitted)));
                hints.extend(near.allowed_roles(namespace.annotations.get(&rules.keys.allowed_roles)));
            }
        }
        Reason::NoPolicy { .. } => {
            if let Some((_, role)) = asked {
                hints.push(allow(&rules.keys, &subject.pod.namespace, role));
            }
        }
        Reason::NamespaceUnknown { namespace } => {
            hints.push(format!(
                "`kubectl get namespace {namespace} -o yaml` prints the missing object; `explain --manifests` needs it among \
                 the manifests"
            ));
        }
        Reason::BaseUnknown { .. } => hints.push(
            "--base-role-arn arn:aws:iam::ACCOUNT:role/ sets the account that names of roles belong to"
                .to_owned(),
        ),
        Reason::NoRole { .. } => hints.extend(of_no_role(rules, subject)),
        Reason::MalformedRole { .. } => {
            let named = rules.naming(subject.pod, subject.account).named(rules);
            hints.extend(named.and_then(|(_, written)| slips::of_role(written)));
        }
        _ => {}
    }
    hints.extend(asked.and_then(|(written, _)| slips::of_path(written)));
    if !matches!(reason, Reason::NoRole { .. } | Reason::Firewall) {
        hints.extend(other_credentials(subject.pod));
    }
    if let (Some(base), Some((_, role))) = (&rules.base, asked)
        && base.partition() != role.partition()
    {
        hints.push(format!(
            "the role is in partition {}, and this node's roles are in {}: no role can be assumed across partitions",
            role.partition(),
            base.partition()
        ));
    }
    hints.extend(misplaced(rules, subject));
    hints.truncate(MAX_HINTS);
    hints
}

/// Returns hints on objects that were probably meant to give a role to a pod that has none.
fn of_no_role(rules: &Rules, subject: &Subject<'_>) -> Vec<String> {
    let mut hints = Vec::new();
    if subject.pod.host_network && rules.default_role.is_some() {
        hints.push(if rules.enforce_host_network {
            "--default-role does not apply to hostNetwork pods, and --host-network=enforce keeps them from the node's role".to_owned()
        } else {
            "--default-role does not apply to hostNetwork pods: they keep the node's role".to_owned()
        });
    }
    let account = subject.account;
    if let Some(written) = account.and_then(|account| account.annotation(web_identity::ROLE_KEY))
        && !rules.web_identity
    {
        hints.push(format!(
            "service account {} names the role {written}, but annotations of service accounts are not read; set --web-identity=on",
            subject.pod.service_account
        ));
    }
    hints
}

/// Returns a hint on variables in which an SDK finds credentials before it asks the metadata service.
fn other_credentials(pod: &Pod) -> Option<String> {
    let named = |one: &CredentialVariable| format!("{} ({})", one.name(), one.set_by());
    let names: Vec<String> = pod.other_credentials.iter().map(named).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the pod's containers have {}: an SDK takes its credentials from there, and never falls back to the metadata service, \
             so it does not use this role; remove what sets the variables, and recreate the pod",
            names.join(" and ")
        )
    })
}

/// Returns a hint on what to check if STS denies the role.
pub(super) fn of_sts(reason: &Reason, role: &RoleArn) -> Option<String> {
    match reason {
        Reason::StsDenied { .. } => Some(format!(
            "the trust policy of {name} must allow the principal in the line `session` to assume it (with --session-tags also \
             sts:TagSession); if that principal is a role, its own policies must allow sts:AssumeRole on {name}; the external id \
             must be the one that the trust policy requires",
            name = role.name()
        )),
        _ => None,
    }
}

/// Says whether an annotation or label looks like a request for a role, but is not read in its place.
pub(super) fn is_suspicious(rules: &Rules, subject: &Subject<'_>) -> bool {
    !misplaced(rules, subject).is_empty()
}

/// Returns a hint for each key that is not read in its place.
fn misplaced(rules: &Rules, subject: &Subject<'_>) -> Vec<String> {
    let keys = &rules.keys;
    let of_pods = [&keys.role, &keys.external_id, &keys.session_name].map(String::as_str);
    let of_namespaces = [&keys.permitted, &keys.allowed_roles].map(String::as_str);
    let none = Annotations::new();
    let namespace = subject
        .namespace
        .map_or(&none, |namespace| &namespace.annotations);
    let account = subject.account.map_or(&none, |account| &account.annotations);
    let places = [
        ("the pod", "pods", &subject.pod.annotations, &of_pods[..]),
        ("the namespace", "namespaces", namespace, &of_namespaces[..]),
        (
            "the service account",
            "service accounts",
            account,
            &web_identity::KEYS[..],
        ),
    ];
    let mut hints = Vec::new();
    for key in subject.pod.labels.keys() {
        if of_pods.contains(&key.as_str()) || closest_key(key, of_pods).is_some() {
            hints.push(format!(
                "{key} is a label of the pod, and labels are not read; make it an annotation"
            ));
        }
    }
    for (object, _, annotations, read) in places {
        for key in annotations.keys().filter(|key| !read.contains(&key.as_str())) {
            let home = places.iter().find(|place| place.3.contains(&key.as_str()));
            if let Some((_, plural, ..)) = home {
                hints.push(format!(
                    "annotation {key} of {object} is not read there; it belongs on {plural}"
                ));
            } else if let Some(near) =
                closest_key(key, read.iter().copied()).filter(|near| !annotations.contains_key(*near))
            {
                hints.push(format!(
                    "annotation {key} of {object} is not read; did you mean {near}?"
                ));
            }
        }
    }
    hints
}

/// Returns the command that would allow a role.
fn allow(keys: &AnnotationKeys, namespace: &str, role: &RoleArn) -> String {
    format!(
        "`kubectl annotate namespace {namespace} '{}={}'` would allow it",
        keys.permitted,
        regex::escape(role.as_str())
    )
}
