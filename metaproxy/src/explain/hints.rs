//! What was probably meant. A hint is given where something speaks for it: a pattern that would match if it were read in
//! another way, a key that is nearly one that is read, an annotation on the wrong object.

mod near;
mod slips;

use self::near::Near;
use super::Subject;
use crate::pods::annotations::closest_key;
use crate::pods::{Annotations, CredentialVariable, Pod};
use crate::roles::web_identity;
use crate::roles::{AnnotationKeys, Reason, RoleArn, Rules};

/// How many hints an explanation shows. A longer list would not be read.
const MAX_HINTS: usize = 8;

/// All hints for a pod, the likeliest first. `asked` is the role that it asks for, as it is written and as it is read.
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
                "`kubectl get namespace {namespace} -o yaml` prints the object that is missing; manifests that are \
                 explained by themselves must include it"
            ));
        }
        Reason::BaseUnknown { .. } => hints.push(
            "--base-role-arn arn:aws:iam::ACCOUNT:role/ tells in which account names are looked for"
                .to_owned(),
        ),
        Reason::NoRole { .. } => hints.extend(of_nobody(rules, subject)),
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
            "the role is of partition {}, and this node's are of {}: no role of one can assume one of the other",
            role.partition(),
            base.partition()
        ));
    }
    hints.extend(misplaced(rules, subject));
    hints.truncate(MAX_HINTS);
    hints
}

/// What might have named a role.
fn of_nobody(rules: &Rules, subject: &Subject<'_>) -> Vec<String> {
    let mut hints = Vec::new();
    if subject.pod.host_network && rules.default_role.is_some() {
        hints.push(if rules.enforce_host_network {
            "--default-role is not for hostNetwork pods, and --host-network=enforce keeps them from the node's own".to_owned()
        } else {
            "--default-role is not for hostNetwork pods: they keep the node's own".to_owned()
        });
    }
    let account = subject.account;
    if let Some(written) = account.and_then(|account| account.annotation(web_identity::ROLE_KEY))
        && !rules.web_identity
    {
        hints.push(format!(
            "service account {} names the role {written}, but service accounts are not asked: --web-identity=on does that",
            subject.pod.service_account
        ));
    }
    hints
}

/// What an SDK in the pod finds before it comes to the metadata service.
fn other_credentials(pod: &Pod) -> Option<String> {
    let named = |one: &CredentialVariable| format!("{} ({})", one.name(), one.set_by());
    let names: Vec<String> = pod.other_credentials.iter().map(named).collect();
    (!names.is_empty()).then(|| {
        format!(
            "the pod's containers have {}: an SDK takes its credentials from there, and never falls back to the metadata service, \
             so it does not use this role. Take away what sets that, and make the pod again",
            names.join(" and ")
        )
    })
}

/// What to look at where STS refuses.
pub(super) fn of_sts(reason: &Reason, role: &RoleArn) -> Option<String> {
    match reason {
        Reason::StsDenied { .. } => Some(format!(
            "the trust policy of {} must let whoever assumes it do so (and sts:TagSession, with --session-tags); that \
             one's own policy must allow sts:AssumeRole of it; an external id must be the one that the trust policy asks for",
            role.name()
        )),
        _ => None,
    }
}

/// Whether somebody seems to have meant something by a key that is not read where it stands.
pub(super) fn is_suspicious(rules: &Rules, subject: &Subject<'_>) -> bool {
    !misplaced(rules, subject).is_empty()
}

/// Keys that are not read where they stand.
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
                "{key} is a label of the pod, which is not read: it must be an annotation"
            ));
        }
    }
    for (object, _, annotations, read) in places {
        for key in annotations.keys().filter(|key| !read.contains(&key.as_str())) {
            let home = places.iter().find(|place| place.3.contains(&key.as_str()));
            if let Some((_, plural, ..)) = home {
                hints.push(format!(
                    "annotation {key} stands on {object}, where nobody reads it: it is one of {plural}"
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

fn allow(keys: &AnnotationKeys, namespace: &str, role: &RoleArn) -> String {
    format!(
        "`kubectl annotate namespace {namespace} '{}={}'` would allow it",
        keys.permitted,
        regex::escape(role.as_str())
    )
}
