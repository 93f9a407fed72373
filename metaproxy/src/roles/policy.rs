//! Reads the policies of namespaces: kiam's `permitted` and kube2iam's `allowed-roles`.
//!
//! Every user who may annotate a namespace can write patterns, so their cost must be bounded. The `regex` crate
//! matches in time linear in the text and in the compiled pattern. The annotation's length and the compiled size of
//! all its patterns together are limited, each pattern is compiled once, and compared with each role once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use regex::bytes::{RegexSet, RegexSetBuilder};
use regex_syntax::ast::parse::Parser;
use regex_syntax::ast::{Ast, Flag, Visitor, visit};
use thiserror::Error;

use super::{BaseArn, RoleArn, go_regexp};

/// `--allowed-roles-style`: how entries of `allowed-roles` are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum AllowedRolesStyle {
    /// `*` and `?`, both across `/` (kube2iam's default)
    #[default]
    Glob,
    /// Regular expressions, from the beginning of a name but not to its end (kube2iam's
    /// `--namespace-restriction-format=regexp`)
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

/// The treatment of letter case in comparisons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    /// Capital and small letters differ. Decisions use this variant.
    AsWritten,
    /// Capital and small letters are equal. Only hints use this variant, never decisions.
    InAnyCase,
}

/// The largest length of an annotation, in bytes.
const MAX_LENGTH: usize = 32 * 1024;

/// The largest total size of an annotation's compiled regular expressions, in bytes of memory. It suffices for about
/// 170 ARNs in one pattern, or 290 in a list. The worst cost of matching grows with it, to about 0.2 seconds for the
/// longest role.
const MAX_COMPILED: usize = 512 * 1024;

/// The largest total size of an annotation's compiled globs, in bytes of memory. A glob costs far less to match than
/// a regular expression.
const MAX_COMPILED_GLOBS: usize = 1024 * 1024;

/// The reason why a namespace's policy is malformed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// The annotation is too long.
    #[error("it is longer than {MAX_LENGTH} bytes; shorten it")]
    TooLong,
    /// An entry is not a regular expression.
    #[error("it is not a regular expression: {0}")]
    Pattern(String),
    /// The compiled patterns are too large.
    #[error("its patterns are too large when compiled; shorten them, or their repetitions")]
    TooLarge,
    /// The annotation is not a JSON list.
    #[error("it is not a JSON list of strings such as [\"app-*\"]: {0}")]
    Json(String),
}

/// A role in the forms that patterns are compared with: the ARN, the role as written and, if the role lies under the
/// base ARN, the name relative to it.
#[derive(Debug)]
pub struct Candidate<'a> {
    arn: &'a str,
    written: &'a str,
    relative: Option<&'a str>,
}

impl<'a> Candidate<'a> {
    /// Returns the forms of a resolved role. A name in a pattern never matches a role of another account, which must
    /// be written as an ARN.
    pub fn new(role: &'a RoleArn, written: &'a str, base: Option<&BaseArn>) -> Self {
        let relative = base.and_then(|base| role.as_str().strip_prefix(base.prefix().as_str()));
        Self {
            arn: role.as_str(),
            written,
            relative,
        }
    }

    fn forms(&self, against: Against) -> impl Iterator<Item = &'a str> {
        let (arn, written, relative) = match against {
            Against::EveryForm => (Some(self.arn), Some(self.written), self.relative),
            Against::Arn => (Some(self.arn), None, None),
            Against::Name => (None, None, self.relative),
        };
        [arn, written, relative].into_iter().flatten()
    }
}

/// The forms of a role that a pattern is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    EveryForm,
    Arn,
    /// The name relative to the base ARN, because kube2iam puts the base before an entry that is not an ARN.
    Name,
}

/// The forms of roles that were compared, each with the number of the entry that allows the role.
type Asked = HashMap<[Option<Box<str>>; 3], Option<usize>>;

/// One annotation, compiled.
#[derive(Debug)]
pub struct Policy {
    entries: Vec<String>,
    /// Sets of patterns, each with the numbers of their entries.
    patterns: Vec<(Against, RegexSet, Vec<usize>)>,
    /// The results of earlier comparisons. They are kept because pods request the same roles repeatedly.
    asked: Mutex<Asked>,
}

impl Policy {
    /// The maximum number of kept results, which is more than a node has roles. All results are dropped when it is
    /// reached.
    const MAX_ASKED: usize = 1024;

    /// Reads kiam's `permitted`.
    ///
    /// # Errors
    /// If the annotation is not a regular expression. Such an annotation must permit nothing.
    pub fn permitted(annotation: &str, style: PermittedMatch, letters: Letters) -> Result<Self, PolicyError> {
        check_length(annotation)?;
        let mut policy = Self::of_entries(vec![annotation.to_owned()]);
        if annotation.trim().is_empty() {
            // As in kiam, an empty annotation permits nothing, although an empty pattern is found in every text.
            policy.entries.clear();
            return Ok(policy);
        }
        let pattern = go_regexp(annotation);
        // The pattern is compiled without the group first, because a group would make `a)|(b` valid, with another
        // meaning.
        let by_itself = compile(&[pattern.to_string()], MAX_COMPILED, letters)?;
        let patterns = match style {
            PermittedMatch::Search => by_itself,
            // The group makes both anchors apply to each alternative of `a|b`.
            PermittedMatch::Anchored => compile(&[format!("^(?:{pattern})$")], MAX_COMPILED, letters)?,
        };
        policy.patterns.push((Against::EveryForm, patterns, vec![0]));
        Ok(policy)
    }

    /// Reads kube2iam's `allowed-roles`. As in kube2iam, an entry that is not an ARN is compared with names under the
    /// base ARN, from their beginning; a regular expression need not match to their end.
    ///
    /// # Errors
    /// If the annotation is not a list, or an entry is not a pattern. Such an annotation must allow nothing.
    pub fn allowed_roles(
        annotation: &str,
        style: AllowedRolesStyle,
        letters: Letters,
    ) -> Result<Self, PolicyError> {
        check_length(annotation)?;
        let entries: Vec<String> =
            serde_json::from_str(annotation).map_err(|error| PolicyError::Json(error.to_string()))?;
        let mut policy = Self::of_entries(entries);
        let limit = match style {
            AllowedRolesStyle::Glob => MAX_COMPILED_GLOBS,
            AllowedRolesStyle::Regexp => MAX_COMPILED,
        };
        for against in [Against::Arn, Against::Name] {
            let wanted = policy.entries.iter().enumerate().filter_map(|(number, entry)| {
                let (kind, bare) = kind_of(entry);
                // An empty pattern is found in every text, but an empty entry names no role.
                (kind == against && !bare.is_empty()).then_some((number, bare))
            });
            let (numbers, bare): (Vec<usize>, Vec<String>) = wanted.unzip();
            let patterns: Vec<String> = match style {
                AllowedRolesStyle::Glob => bare.iter().map(|entry| glob(entry)).collect(),
                AllowedRolesStyle::Regexp => {
                    let bare: Vec<String> = bare.iter().map(|entry| go_regexp(entry).into_owned()).collect();
                    // The patterns are compiled without the groups first, because a group would make `a)|(b` valid.
                    compile(&bare, limit, letters)?;
                    let start = if against == Against::Name { "^" } else { "" };
                    bare.iter().map(|entry| format!("{start}(?:{entry})")).collect()
                }
            };
            let patterns = compile(&patterns, limit, letters)?;
            policy.patterns.push((against, patterns, numbers));
        }
        Ok(policy)
    }

    fn of_entries(entries: Vec<String>) -> Self {
        Self {
            entries,
            patterns: Vec::new(),
            asked: Mutex::default(),
        }
    }

    /// Returns the first entry, as written, that allows the role.
    pub fn allows(&self, role: &Candidate<'_>) -> Option<&str> {
        let key = [Some(role.arn), Some(role.written), role.relative].map(|form| form.map(Box::from));
        let lock = || self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock().get(&key).copied();
        let number = known.unwrap_or_else(|| {
            let number = self.first(role);
            let mut asked = lock();
            if asked.len() >= Self::MAX_ASKED {
                asked.clear();
            }
            asked.insert(key, number);
            number
        });
        self.entries.get(number?).map(String::as_str)
    }

    fn first(&self, role: &Candidate<'_>) -> Option<usize> {
        let matching = self.patterns.iter().flat_map(|(against, patterns, numbers)| {
            role.forms(*against)
                .flat_map(|form| patterns.matches(form.as_bytes()))
                .filter_map(|index| numbers.get(index).copied())
        });
        matching.min()
    }

    /// Returns the entries, as written.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }
}

/// Says whether an entry of `allowed-roles` is for ARNs (`arn:` in any case, as in the pod's annotation) or for
/// names, and returns the part that is compared.
fn kind_of(entry: &str) -> (Against, String) {
    let entry = entry.trim();
    let bare = entry.strip_prefix('^').unwrap_or(entry);
    match bare.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("arn:") => {
            let start = if bare.len() < entry.len() { "^" } else { "" };
            (Against::Arn, format!("{start}arn:{}", &bare[4..]))
        }
        _ => (Against::Name, bare.strip_prefix('/').unwrap_or(bare).to_owned()),
    }
}

fn check_length(annotation: &str) -> Result<(), PolicyError> {
    if annotation.len() > MAX_LENGTH {
        Err(PolicyError::TooLong)
    } else {
        Ok(())
    }
}

fn compile(patterns: &[String], limit: usize, letters: Letters) -> Result<RegexSet, PolicyError> {
    for pattern in patterns {
        check_flags(pattern)?;
    }
    RegexSetBuilder::new(patterns)
        // Roles are ASCII, and so are `\w` and `\d` in Go, in whose syntax these patterns are written.
        .unicode(false)
        .case_insensitive(letters == Letters::InAnyCase)
        .size_limit(limit)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => PolicyError::TooLarge,
            // The error text has several lines: the pattern, a mark below it, and at last the problem.
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

/// Refuses the flag `u`: Unicode classes take hundreds of megabytes before the size limit stops them. A pattern that
/// can't be parsed is accepted here, since compiling it reports a better error.
fn check_flags(pattern: &str) -> Result<(), PolicyError> {
    struct Flags;
    impl Visitor for Flags {
        type Output = ();
        type Err = ();

        fn finish(self) -> Result<(), ()> {
            Ok(())
        }

        fn visit_pre(&mut self, ast: &Ast) -> Result<(), ()> {
            let flags = match ast {
                Ast::Flags(set) => Some(&set.flags),
                Ast::Group(group) => group.flags(),
                _ => None,
            };
            match flags.and_then(|flags| flags.flag_state(Flag::Unicode)) {
                Some(true) => Err(()),
                _ => Ok(()),
            }
        }
    }
    let Ok(parsed) = Parser::new().parse(pattern) else {
        return Ok(());
    };
    visit(&parsed, Flags).map_err(|()| {
        let shown: String = pattern.chars().take(200).collect();
        PolicyError::Pattern(format!(
            "{shown:?}: the flag u (Unicode) is not supported, as roles are ASCII; leave it out"
        ))
    })
}

/// Translates a glob of kube2iam: `*` is any text, `/` included, and `?` is one character.
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
