//! What a namespace permits its pods: kiam's `permitted` and kube2iam's `allowed-roles`.
//!
//! Patterns come from whoever may annotate a namespace. The `regex` crate matches in time linear in the text; the
//! annotation's length and the compiled size of all its patterns together are bounded; and each is compiled once. So
//! none of them can cost more than its share.

use regex::{RegexSet, RegexSetBuilder};
use thiserror::Error;

use super::{BaseArn, RoleArn};

/// `--allowed-roles-style`: how entries of `allowed-roles` are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum AllowedRolesStyle {
    /// `*` and `?`, both across `/` (kube2iam's default)
    #[default]
    Glob,
    /// Regular expressions, unanchored (kube2iam's `--namespace-restriction-format=regexp`)
    Regexp,
}

/// `--permitted-match`: how `permitted` is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum PermittedMatch {
    /// The whole ARN or name must match (kiam 4.0 and newer)
    #[default]
    Anchored,
    /// A match anywhere is enough (older kiam)
    Search,
}

/// Longest annotation that is read, in bytes.
const MAX_LENGTH: usize = 32 * 1024;

/// Largest compiled policy, all its patterns together, in bytes of memory.
const MAX_COMPILED: usize = 2 * 1024 * 1024;

/// What is wrong with a namespace's policy.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Too long.
    #[error("it is longer than {MAX_LENGTH} bytes")]
    TooLong,
    /// No regular expression.
    #[error("it is not a regular expression: {0}")]
    Pattern(String),
    /// Too costly.
    #[error("its patterns take more than {MAX_COMPILED} bytes when compiled")]
    TooLarge,
    /// No JSON list.
    #[error("it is not a JSON list of strings such as [\"app-*\"]: {0}")]
    Json(String),
}

/// A role in the forms that patterns are compared with: the ARN, the name as it is written, and, where the role lies
/// under the base ARN, the name relative to that.
#[derive(Debug)]
pub struct Candidate<'a> {
    arn: &'a str,
    written: &'a str,
    relative: Option<&'a str>,
}

impl<'a> Candidate<'a> {
    /// Of a resolved role. A name in a pattern never matches a role of another account: what is written for one of those
    /// is an ARN.
    pub fn new(role: &'a RoleArn, written: &'a str, base: Option<&BaseArn>) -> Self {
        let relative = base.and_then(|base| role.as_str().strip_prefix(base.prefix().as_str()));
        Self {
            arn: role.as_str(),
            written,
            relative,
        }
    }

    fn forms(&self) -> impl Iterator<Item = &'a str> {
        [self.arn, self.written].into_iter().chain(self.relative)
    }
}

/// What one annotation allows, read once.
#[derive(Debug)]
pub struct Policy {
    entries: Vec<String>,
    patterns: RegexSet,
}

impl Policy {
    /// kiam's `permitted`.
    ///
    /// # Errors
    /// Where the annotation is no regular expression; nothing is permitted then.
    pub fn permitted(annotation: &str, style: PermittedMatch) -> Result<Self, PolicyError> {
        check_length(annotation)?;
        if annotation.trim().is_empty() {
            // As kiam has it; searched for, an empty pattern would match everything.
            return Self::new(Vec::new(), &[]);
        }
        let entries = vec![annotation.to_owned()];
        match style {
            PermittedMatch::Search => Self::new(entries.clone(), &entries),
            PermittedMatch::Anchored => {
                // By itself as well, so that the grouping can't mend (or be closed by) a pattern such as `a)|(b`.
                compile(&entries)?;
                // Grouped first: in `a|b` each alternative is anchored on both sides.
                Self::new(entries, &[format!("^(?:{annotation})$")])
            }
        }
    }

    /// kube2iam's `allowed-roles`.
    ///
    /// # Errors
    /// Where the annotation is no list, or an entry no pattern; nothing is allowed then.
    pub fn allowed_roles(annotation: &str, style: AllowedRolesStyle) -> Result<Self, PolicyError> {
        check_length(annotation)?;
        let entries: Vec<String> =
            serde_json::from_str(annotation).map_err(|error| PolicyError::Json(error.to_string()))?;
        let patterns: Vec<String> = entries
            .iter()
            .map(|entry| {
                let entry = entry.strip_prefix('/').unwrap_or(entry);
                match style {
                    AllowedRolesStyle::Glob => glob(&lower_arn(entry)),
                    AllowedRolesStyle::Regexp => entry.to_owned(),
                }
            })
            .collect();
        // An empty entry would be found everywhere; it names no role.
        let (entries, patterns): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .zip(patterns)
            .filter(|(entry, _)| !entry.trim().is_empty())
            .unzip();
        Self::new(entries, &patterns)
    }

    fn new(entries: Vec<String>, patterns: &[String]) -> Result<Self, PolicyError> {
        let patterns = compile(patterns)?;
        Ok(Self { entries, patterns })
    }

    /// The first entry, as written, that allows the role.
    pub fn allows(&self, role: &Candidate<'_>) -> Option<&str> {
        let first = role
            .forms()
            .filter_map(|form| self.patterns.matches(form).iter().next())
            .min()?;
        self.entries.get(first).map(String::as_str)
    }

    /// The entries, as written.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }
}

fn check_length(annotation: &str) -> Result<(), PolicyError> {
    if annotation.len() > MAX_LENGTH {
        Err(PolicyError::TooLong)
    } else {
        Ok(())
    }
}

fn compile(patterns: &[String]) -> Result<RegexSet, PolicyError> {
    RegexSetBuilder::new(patterns)
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PolicyError::TooLarge,
            // Several lines, with the pattern and a mark below it; the last one says what is wrong.
            other => {
                let text = other.to_string();
                let lines: Vec<&str> = text.lines().map(str::trim).collect();
                let pattern = lines
                    .iter()
                    .find(|line| !line.starts_with("regex parse error"))
                    .copied();
                let problem = lines.last().copied().unwrap_or_default();
                PolicyError::Pattern(format!(
                    "{:?}: {}",
                    pattern.unwrap_or_default(),
                    problem.trim_start_matches("error: ")
                ))
            }
        })
}

/// `arn:` in any case, as in the role's own annotation.
fn lower_arn(entry: &str) -> String {
    match entry.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("arn:") => format!("arn:{}", &entry[4..]),
        _ => entry.to_owned(),
    }
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
mod tests;
