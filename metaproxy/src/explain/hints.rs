//! What was probably meant. A hint is given where something speaks for it: a pattern that would match if it were read in
//! another way, a key that is nearly one that is read, an annotation on the wrong object.

use std::collections::BTreeSet;

use super::Subject;
use crate::pods::Annotations;
use crate::pods::annotations::meant;
use crate::roles::policy::{AllowedRolesStyle, Candidate, PermittedMatch, Policy, PolicyError};
use crate::roles::web_identity;
use crate::roles::{AnnotationKeys, Reason, RoleArn, RoleSource, Rules};

/// Longest annotation that is tried in other ways, in bytes: nobody mistakes a character in a longer one.
const LONGEST: usize = 4096;

/// Accounts of an annotation that are tried.
const ACCOUNTS: usize = 8;

/// Hints that somebody reads.
const MOST: usize = 8;

/// All hints for a pod, the likeliest first.
pub(super) fn of(
    rules: &Rules,
    subject: &Subject<'_>,
    reason: &Reason,
    asked: Option<&(RoleSource, String)>,
    role: Option<&RoleArn>,
) -> Vec<String> {
    let mut hints = Vec::new();
    match reason {
        Reason::NotPermitted { .. } | Reason::MalformedPolicy { .. } => {
            if let (Some(role), Some((_, written)), Some(namespace)) = (role, asked, subject.namespace) {
                let near = Near { rules, role, written };
                hints.extend(near.permitted(namespace.annotations.get(&rules.keys.permitted)));
                hints.extend(near.allowed_roles(namespace.annotations.get(&rules.keys.allowed_roles)));
            }
        }
        Reason::NoPolicy { .. } => {
            if let Some(role) = role {
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
        Reason::NoRole { .. } => {
            if subject.pod.host_network && rules.default_role.is_some() {
                hints.push("--default-role is not for hostNetwork pods: they keep the node's own".to_owned());
            }
            let account = subject.account;
            if let Some(written) = account.and_then(|account| account.annotation(web_identity::ROLE_KEY))
                && !rules.web_identity
            {
                hints.push(format!(
                    "service account {} names the role {written}, but service accounts are not asked: --web-identity=on \
                     does that",
                    subject.pod.service_account
                ));
            }
        }
        _ => {}
    }
    if let (Some(base), Some(role)) = (&rules.base, role)
        && base.partition() != role.partition()
    {
        hints.push(format!(
            "the role is of partition {}, and this node's are of {}: no role of one can assume one of the other",
            role.partition(),
            base.partition()
        ));
    }
    hints.extend(misplaced(rules, subject));
    hints.truncate(MOST);
    hints
}

/// What to look at where STS refuses.
pub(super) fn of_sts(reason: &Reason, role: &RoleArn) -> Option<String> {
    match reason {
        Reason::StsDenied { .. } => Some(format!(
            "the trust policy of {} must let whoever assumes it do so (and sts:TagSession, with --session-tags=on); that \
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
    for (object, _, annotations, read) in places {
        for key in annotations.keys().filter(|key| !read.contains(&key.as_str())) {
            let home = places.iter().find(|place| place.3.contains(&key.as_str()));
            if let Some((_, plural, ..)) = home {
                hints.push(format!(
                    "annotation {key} stands on {object}, where nobody reads it: it is one of {plural}"
                ));
            } else if let Some(near) =
                meant(key, read.iter().copied()).filter(|near| !annotations.contains_key(*near))
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

/// A role that a policy does not allow, and what would have to be otherwise.
struct Near<'a> {
    rules: &'a Rules,
    role: &'a RoleArn,
    written: &'a str,
}

impl Near<'_> {
    fn is_allowed(&self, policy: Result<Policy, PolicyError>) -> bool {
        let candidate = Candidate::new(self.role, self.written, self.rules.base.as_ref());
        policy.is_ok_and(|policy| policy.allows(&candidate).is_some())
    }

    fn permits(&self, pattern: &str) -> bool {
        self.is_allowed(Policy::permitted(pattern, self.rules.namespaces.permitted_match))
    }

    fn lists(&self, annotation: &str, style: AllowedRolesStyle) -> bool {
        self.is_allowed(Policy::allowed_roles(annotation, style))
    }

    fn permitted(&self, annotation: Option<&String>) -> Option<String> {
        let annotation = annotation.filter(|annotation| annotation.len() <= LONGEST)?;
        let keys = &self.rules.keys;
        let style = self.rules.namespaces.permitted_match;
        if serde_json::from_str::<Vec<String>>(annotation).is_ok() {
            return Some(format!(
                "{annotation:?} is a JSON list, as {} has it; {} is one regular expression",
                keys.allowed_roles, keys.permitted
            ));
        }
        if annotation.trim().is_empty() {
            return Some(format!(
                "an empty {} allows nothing; .* allows every role",
                keys.permitted
            ));
        }
        if self.permits(annotation) {
            return None;
        }
        let key = &keys.permitted;
        let found = style == PermittedMatch::Anchored
            && self.is_allowed(Policy::permitted(annotation, PermittedMatch::Search));
        if let Some(pattern) = without_globs(annotation).filter(|pattern| self.permits(pattern)) {
            let unanchored = if found { " would match unanchored, but" } else { "" };
            return Some(format!(
                "`{annotation}` in {key}{unanchored} is a regular expression for the whole ARN or name, in which `*` repeats \
                 what is before it; did you mean `{pattern}`?"
            ));
        }
        if found {
            let loose = format!("{annotation}.*");
            let better = if self.permits(&loose) {
                format!("`{loose}`")
            } else {
                format!("`.*({annotation}).*`")
            };
            return Some(format!(
                "`{annotation}` would match unanchored (as kiam before 4.0 did, and --permitted-match=search does), but must \
                 match the whole ARN or name; did you mean {better}?"
            ));
        }
        self.case_or_account(
            &format!("`{annotation}` in {key}"),
            |text| self.permits(text),
            annotation,
        )
    }

    fn allowed_roles(&self, annotation: Option<&String>) -> Option<String> {
        let annotation = annotation.filter(|annotation| annotation.len() <= LONGEST)?;
        let keys = &self.rules.keys;
        let style = self.rules.namespaces.allowed_roles_style;
        let key = &keys.allowed_roles;
        if serde_json::from_str::<Vec<String>>(annotation).is_err() {
            let list = serde_json::to_string(&[annotation]).unwrap_or_default();
            return Some(if self.lists(&list, style) {
                format!("{key} is a JSON list, even of one entry; did you mean `{list}`?")
            } else {
                format!("{key} is a JSON list of strings, such as `[\"app-*\"]`")
            });
        }
        if self.lists(annotation, style) {
            return None;
        }
        let (other, flag) = match style {
            AllowedRolesStyle::Glob => (AllowedRolesStyle::Regexp, "regexp"),
            AllowedRolesStyle::Regexp => (AllowedRolesStyle::Glob, "glob"),
        };
        if self.lists(annotation, other) {
            let meant = match style {
                AllowedRolesStyle::Glob => annotation.replace(".*", "*"),
                AllowedRolesStyle::Regexp => without_globs(annotation).unwrap_or_default(),
            };
            let instead = if self.lists(&meant, style) {
                format!("; did you mean `{meant}`?")
            } else {
                ".".to_owned()
            };
            return Some(format!(
                "`{annotation}` in {key} would match with --allowed-roles-style={flag}{instead}"
            ));
        }
        self.case_or_account(
            &format!("`{annotation}` in {key}"),
            |text| self.lists(text, style),
            annotation,
        )
    }

    /// What is compared as it is written: case, and the account of an ARN.
    fn case_or_account(&self, what: &str, allows: impl Fn(&str) -> bool, annotation: &str) -> Option<String> {
        let lower = Near {
            role: &self.role.as_str().to_ascii_lowercase().parse().ok()?,
            written: &self.written.to_ascii_lowercase(),
            rules: self.rules,
        };
        let lowered = annotation.to_ascii_lowercase();
        if lower.permits(&lowered) || lower.lists(&lowered, self.rules.namespaces.allowed_roles_style) {
            return Some(format!(
                "{what} differs from the role in capital letters only: names of roles are compared with their case"
            ));
        }
        let accounts: BTreeSet<&str> = annotation
            .split(|c: char| !c.is_ascii_digit())
            .filter(|digits| digits.len() == 12 && *digits != self.role.account())
            .collect();
        let account = accounts
            .into_iter()
            .take(ACCOUNTS)
            .find(|account| allows(&annotation.replace(account, self.role.account())))?;
        Some(format!(
            "{what} allows it in account {account}, but the role is one of account {}",
            self.role.account()
        ))
    }
}

/// A pattern in which each `*` of a glob stands as `.*`; `None` where there is none.
fn without_globs(pattern: &str) -> Option<String> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut before = '"';
    for character in pattern.chars() {
        // After these, a star is what it is in a regular expression.
        if character == '*' && !matches!(before, '.' | ')' | ']' | '\\' | '}') {
            out.push('.');
        }
        out.push(character);
        before = character;
    }
    (out != pattern).then_some(out)
}
