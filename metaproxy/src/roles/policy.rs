//! What a namespace permits its pods: kiam's `permitted` and kube2iam's `allowed-roles`.
//!
//! Patterns come from whoever may annotate a namespace. The `regex` crate matches in time linear in the text, and the
//! compiled size and the length of what is compiled are bounded, so none of them can cost more than its share.

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use super::{BaseArn, RoleArn};

/// `--allowed-roles-style`: how entries of `allowed-roles` are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AllowedRolesStyle {
    /// `*` and `?`, both across `/` (kube2iam's default)
    #[default]
    Glob,
    /// Regular expressions, unanchored (kube2iam's `--namespace-restriction-format=regexp`)
    Regexp,
}

/// `--permitted-match`: how `permitted` is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PermittedMatch {
    /// The whole ARN or name must match (kiam 4.0 and newer)
    #[default]
    Anchored,
    /// A match anywhere is enough (older kiam)
    Search,
}

/// Longest annotation that is read, in bytes.
const MAX_LENGTH: usize = 8 * 1024;

/// Largest compiled pattern, in bytes of memory.
const MAX_COMPILED: usize = 256 * 1024;

/// What is wrong with a namespace's policy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Too long.
    #[error("it is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// No regular expression.
    #[error("{pattern:?} is not a regular expression: {error}")]
    Pattern {
        /// As written.
        pattern: String,
        /// The last line of what the parser says.
        error: String,
    },
    /// No JSON list.
    #[error("it is not a JSON list of strings such as [\"app-*\"]: {0}")]
    Json(String),
}

/// A role in the forms that patterns are compared with: the ARN, and, where the role lies under the base ARN, the
/// name relative to it (which is how it is written then).
#[derive(Debug)]
pub struct Candidate<'a> {
    arn: &'a str,
    relative: Option<&'a str>,
}

impl<'a> Candidate<'a> {
    /// Of a resolved role. A name in a pattern never matches a role of another account: only of the base.
    pub fn new(role: &'a RoleArn, base: Option<&BaseArn>) -> Self {
        let relative = base.and_then(|base| role.as_str().strip_prefix(base.prefix().as_str()));
        Self {
            arn: role.as_str(),
            relative,
        }
    }

    fn matches(&self, pattern: &Regex) -> bool {
        pattern.is_match(self.arn) || self.relative.is_some_and(|name| pattern.is_match(name))
    }
}

/// Whether kiam's `permitted` allows the role.
///
/// # Errors
/// Where the annotation is no regular expression; nothing is permitted then.
pub fn permitted(annotation: &str, style: PermittedMatch, role: &Candidate<'_>) -> Result<bool, PolicyError> {
    check_length(annotation)?;
    if annotation.trim().is_empty() {
        // As kiam has it; searched for, an empty pattern would match everything.
        return Ok(false);
    }
    let pattern = match style {
        // Grouped first: in `a|b` each alternative is anchored on both sides.
        PermittedMatch::Anchored => format!("^(?:{annotation})$"),
        PermittedMatch::Search => annotation.to_owned(),
    };
    // By itself as well, so that the grouping can't mend (or be closed by) a pattern such as `a)|(b`.
    compile(annotation, annotation)?;
    Ok(role.matches(&compile(&pattern, annotation)?))
}

/// Whether kube2iam's `allowed-roles` allows the role.
///
/// # Errors
/// Where the annotation is no list, or an entry no pattern; nothing is allowed then.
pub fn allowed(
    annotation: &str,
    style: AllowedRolesStyle,
    role: &Candidate<'_>,
) -> Result<bool, PolicyError> {
    check_length(annotation)?;
    let entries: Vec<String> =
        serde_json::from_str(annotation).map_err(|error| PolicyError::Json(error.to_string()))?;
    let mut any = false;
    // Every entry is read, so that a broken one is reported whatever stands before it.
    for entry in &entries {
        let entry = entry.strip_prefix('/').unwrap_or(entry);
        let pattern = match style {
            AllowedRolesStyle::Glob => glob(entry),
            AllowedRolesStyle::Regexp => entry.to_owned(),
        };
        any |= role.matches(&compile(&pattern, entry)?);
    }
    Ok(any)
}

fn check_length(annotation: &str) -> Result<(), PolicyError> {
    if annotation.len() > MAX_LENGTH {
        Err(PolicyError::TooLong)
    } else {
        Ok(())
    }
}

fn compile(pattern: &str, written: &str) -> Result<Regex, PolicyError> {
    RegexBuilder::new(pattern)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| {
            let text = error.to_string();
            let last = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim_start_matches("error: ");
            PolicyError::Pattern {
                pattern: written.to_owned(),
                error: last.to_owned(),
            }
        })
}

/// kube2iam's globs: `*` is any text, `/` included, and `?` one character.
fn glob(entry: &str) -> String {
    let mut pattern = String::from("^(?s:");
    for character in entry.chars() {
        match character {
            '*' => pattern.push_str(".*"),
            '?' => pattern.push('.'),
            other => pattern.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    pattern.push_str(")$");
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::arn::parse_role;
    use proptest::prelude::*;
    use rstest::rstest;

    fn base() -> BaseArn {
        "arn:aws:iam::123456789012:role/".parse().unwrap()
    }

    #[rstest]
    #[case::name("app", "app", true, true)]
    #[case::whole_name("app", "app-admin", false, true)]
    #[case::prefix("my-app", "app", false, false)]
    #[case::suffix("app", "my-app", false, true)]
    #[case::alternation("app|web", "app", true, true)]
    #[case::alternation_anchored_on_both_sides("app|web", "app-admin", false, true)]
    #[case::alternation_second("app|web", "evil-web", false, true)]
    #[case::arn("arn:aws:iam::123456789012:role/app", "app", true, true)]
    #[case::arn_pattern("arn:aws:iam::\\d+:role/team/.*", "team/app", true, true)]
    #[case::everything(".*", "anything", true, true)]
    #[case::nothing("$^", "app", false, false)]
    #[case::other_account("app", "arn:aws:iam::999999999999:role/app", false, true)]
    #[case::empty("", "app", false, false)]
    #[case::blank(" ", "app", false, false)]
    fn kiams_permitted(
        #[case] pattern: &str,
        #[case] role: &str,
        #[case] anchored: bool,
        #[case] search: bool,
    ) {
        let arn = parse_role(role, Some(&base())).unwrap();
        let role = Candidate::new(&arn, Some(&base()));
        assert_eq!(permitted(pattern, PermittedMatch::Anchored, &role), Ok(anchored));
        assert_eq!(permitted(pattern, PermittedMatch::Search, &role), Ok(search));
    }

    #[rstest]
    #[case::name(r#"["app"]"#, "app", true)]
    #[case::other(r#"["web"]"#, "app", false)]
    #[case::second(r#"["web", "app"]"#, "app", true)]
    #[case::star(r#"["app-*"]"#, "app-x", true)]
    #[case::star_is_anchored(r#"["app-*"]"#, "my-app-x", false)]
    #[case::star_crosses_slashes(r#"["*"]"#, "team/app", true)]
    #[case::question_mark(r#"["app-?"]"#, "app-xy", false)]
    #[case::arn(r#"["arn:aws:iam::123456789012:role/app"]"#, "app", true)]
    #[case::arn_glob(r#"["arn:aws:iam::123456789012:role/*"]"#, "team/app", true)]
    #[case::slash_before(r#"["/team/*"]"#, "team/app", true)]
    #[case::dot_is_a_dot(r#"["a.p"]"#, "app", false)]
    #[case::name_of_another_account(r#"["app"]"#, "arn:aws:iam::999999999999:role/app", false)]
    #[case::none("[]", "app", false)]
    fn kube2iams_globs(#[case] annotation: &str, #[case] role: &str, #[case] want: bool) {
        let arn = parse_role(role, Some(&base())).unwrap();
        let role = Candidate::new(&arn, Some(&base()));
        assert_eq!(allowed(annotation, AllowedRolesStyle::Glob, &role), Ok(want));
    }

    #[test]
    fn kube2iams_regexps_are_unanchored() {
        let arn = parse_role("my-app-x", Some(&base())).unwrap();
        let role = Candidate::new(&arn, Some(&base()));
        assert_eq!(allowed(r#"["app"]"#, AllowedRolesStyle::Regexp, &role), Ok(true));
        assert_eq!(
            allowed(r#"["^app"]"#, AllowedRolesStyle::Regexp, &role),
            Ok(false)
        );
    }

    #[rstest]
    #[case("a)|(b")]
    #[case("(")]
    #[case("a{1000}{1000}{1000}")]
    #[case("(?<!x)y")]
    fn a_pattern_that_is_none_is_an_error_and_permits_nothing(#[case] pattern: &str) {
        let arn = parse_role("app", Some(&base())).unwrap();
        let role = Candidate::new(&arn, Some(&base()));
        let error = permitted(pattern, PermittedMatch::Anchored, &role).unwrap_err();
        assert!(
            error.to_string().contains("is not a regular expression"),
            "{error}"
        );
    }

    #[test]
    fn an_annotation_that_is_no_list_is_an_error() {
        let arn = parse_role("app", Some(&base())).unwrap();
        let role = Candidate::new(&arn, Some(&base()));
        for annotation in ["app", "\"app\"", "[1]", "{}", ""] {
            assert!(matches!(
                allowed(annotation, AllowedRolesStyle::Glob, &role),
                Err(PolicyError::Json(_))
            ));
        }
        let long = format!("[\"{}\"]", "a".repeat(MAX_LENGTH));
        assert_eq!(
            allowed(&long, AllowedRolesStyle::Glob, &role),
            Err(PolicyError::TooLong)
        );
    }

    proptest! {
        #[test]
        fn a_glob_without_wildcards_matches_only_itself(entry in "[a-z0-9.+=@_-]{1,20}", role in "[a-z0-9.+=@_-]{1,20}") {
            let pattern = compile(&glob(&entry), &entry).unwrap();
            prop_assert!(pattern.is_match(&entry));
            prop_assert_eq!(pattern.is_match(&role), entry == role);
        }

        #[test]
        fn no_annotation_makes_it_panic(annotation in "\\PC{0,60}") {
            let arn = parse_role("app", Some(&base())).unwrap();
            let role = Candidate::new(&arn, Some(&base()));
            let _ = permitted(&annotation, PermittedMatch::Anchored, &role);
            let _ = allowed(&annotation, AllowedRolesStyle::Regexp, &role);
        }
    }
}
