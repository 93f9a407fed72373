//! Finds out which small change of a namespace's policy would allow a role.

use std::collections::BTreeSet;

use crate::roles::policy::{AllowedRolesStyle, Candidate, Letters, PermittedMatch};
use crate::roles::{PolicyKind, RoleArn, Rules};

/// The length in bytes up to which an annotation is searched for slips. Longer ones are generated, not typed.
const MAX_ANNOTATION_LENGTH: usize = 4096;

/// The maximum number of accounts of an annotation that are tried. It is limited because a pattern is compiled for
/// each.
const MAX_ACCOUNTS: usize = 8;

/// A role that a policy does not allow.
pub(super) struct Near<'a> {
    pub rules: &'a Rules,
    pub role: &'a RoleArn,
    pub written: &'a str,
}

impl Near<'_> {
    /// Says whether an annotation would allow the role if it were read in a given way.
    fn allows(&self, kind: PolicyKind, annotation: &str, letters: Letters) -> bool {
        let candidate = Candidate::new(self.role, self.written, self.rules.base.as_ref());
        let policy = kind.read(annotation, letters);
        policy.is_ok_and(|policy| policy.allows(&candidate).is_some())
    }

    /// Says whether a pattern would allow the role as `permitted`, with the current flags.
    fn permits(&self, pattern: &str) -> bool {
        let kind = PolicyKind::Permitted(self.rules.namespaces.permitted_match);
        self.allows(kind, pattern, Letters::AsWritten)
    }

    /// Says whether a list would allow the role as `allowed-roles`.
    fn lists(&self, annotation: &str, style: AllowedRolesStyle) -> bool {
        self.allows(PolicyKind::AllowedRoles(style), annotation, Letters::AsWritten)
    }

    /// Returns a hint on the probable intention of `permitted`.
    pub(super) fn permitted(&self, annotation: Option<&String>) -> Option<String> {
        let annotation = annotation.filter(|annotation| annotation.len() <= MAX_ANNOTATION_LENGTH)?;
        let keys = &self.rules.keys;
        if serde_json::from_str::<Vec<String>>(annotation).is_ok() {
            return Some(format!(
                "{annotation:?} is a JSON list, which belongs in {}; {} is one regular expression",
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
        let unquoted = annotation.trim().trim_matches(['"', '\'']);
        if unquoted != annotation && self.permits(unquoted) {
            return Some(format!(
                "the quotation marks in {key} are a part of the pattern; did you mean `{unquoted}`?",
                key = keys.permitted
            ));
        }
        let kind = PolicyKind::Permitted(self.rules.namespaces.permitted_match);
        self.unanchored(annotation)
            .or_else(|| self.case_or_account(kind, &keys.permitted, annotation))
    }

    /// Finds a glob, or a pattern that matches only a part of the role.
    fn unanchored(&self, annotation: &str) -> Option<String> {
        let key = &self.rules.keys.permitted;
        let is_anchored = self.rules.namespaces.permitted_match == PermittedMatch::Anchored;
        let search = PolicyKind::Permitted(PermittedMatch::Search);
        let found = is_anchored && self.allows(search, annotation, Letters::AsWritten);
        if let Some(pattern) = without_globs(annotation).filter(|pattern| self.permits(pattern)) {
            let unanchored = if found { " would match unanchored, but" } else { "" };
            let whole = if is_anchored {
                " for the whole ARN or name"
            } else {
                ""
            };
            return Some(format!(
                "`{annotation}` in {key}{unanchored} is a regular expression{whole}, in which `*` repeats what is before it; \
                 did you mean `{pattern}`?"
            ));
        }
        if !found {
            return None;
        }
        let loose = format!("{annotation}.*");
        let better = if self.permits(&loose) {
            format!("`{loose}`")
        } else {
            format!("`.*({annotation}).*`")
        };
        Some(format!(
            "`{annotation}` would match unanchored (as kiam before 4.0 did, and --permitted-match=search does), but must match \
             the whole ARN or name; did you mean {better}?"
        ))
    }

    /// Returns a hint on the probable intention of `allowed-roles`.
    pub(super) fn allowed_roles(&self, annotation: Option<&String>) -> Option<String> {
        let annotation = annotation.filter(|annotation| annotation.len() <= MAX_ANNOTATION_LENGTH)?;
        let style = self.rules.namespaces.allowed_roles_style;
        let key = &self.rules.keys.allowed_roles;
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
        let kind = PolicyKind::AllowedRoles(style);
        self.other_style(annotation, style)
            .or_else(|| self.case_or_account(kind, key, annotation))
    }

    /// Finds globs that are read as regular expressions, and regular expressions that are read as globs.
    fn other_style(&self, annotation: &str, style: AllowedRolesStyle) -> Option<String> {
        let key = &self.rules.keys.allowed_roles;
        let (other, flag) = match style {
            AllowedRolesStyle::Glob => (AllowedRolesStyle::Regexp, "regexp"),
            AllowedRolesStyle::Regexp => (AllowedRolesStyle::Glob, "glob"),
        };
        if !self.lists(annotation, other) {
            return None;
        }
        let meant = match style {
            AllowedRolesStyle::Glob => annotation.replace(".*", "*"),
            AllowedRolesStyle::Regexp => without_globs(annotation).unwrap_or_default(),
        };
        let instead = if self.lists(&meant, style) {
            format!("; did you mean `{meant}`?")
        } else {
            ".".to_owned()
        };
        Some(format!(
            "`{annotation}` in {key} would match with --allowed-roles-style={flag}{instead}"
        ))
    }

    /// Finds a difference in case, or in the account of an ARN. The annotation is tried as its own kind only: a JSON
    /// list that is read as a regular expression is a character class, which is found in nearly every text.
    fn case_or_account(&self, kind: PolicyKind, key: &str, annotation: &str) -> Option<String> {
        if self.allows(kind, annotation, Letters::InAnyCase) {
            return Some(format!(
                "`{annotation}` in {key} differs from the role in capital letters only, and roles are compared with \
                 their case"
            ));
        }
        let own = self.role.account();
        let accounts: BTreeSet<&str> = annotation
            .split(|c: char| !c.is_ascii_digit())
            .filter(|digits| digits.len() == 12 && *digits != own)
            .collect();
        let account = accounts.into_iter().take(MAX_ACCOUNTS).find(|account| {
            let replaced = annotation.replace(account, own);
            self.allows(kind, &replaced, Letters::AsWritten)
        })?;
        Some(format!(
            "`{annotation}` in {key} would allow the role in account {account}, but it is in account {own}"
        ))
    }
}

/// Replaces each `*` of a glob by `.*`; returns `None` if there is none.
fn without_globs(pattern: &str) -> Option<String> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut before = '"';
    for character in pattern.chars() {
        // After these characters a star is the operator of a regular expression.
        if character == '*' && !matches!(before, '.' | ')' | ']' | '\\' | '}') {
            out.push('.');
        }
        out.push(character);
        before = character;
    }
    (out != pattern).then_some(out)
}
