//! What a namespace permits its pods: kiam's `permitted` and kube2iam's `allowed-roles`.
//!
//! Patterns come from whoever may annotate a namespace. The `regex` crate matches in time linear in the text and in the
//! compiled pattern. The annotation's length and the compiled size of all its patterns together are bounded, each is
//! compiled once, and asked once about each role. So none of them can cost more than its share.

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

/// How letters are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Letters {
    /// A capital one is another than a small one, as IAM has it.
    AsWritten,
    /// It is not: to find out what was meant, and never to decide.
    InAnyCase,
}

/// Longest annotation that is read, in bytes.
const MAX_LENGTH: usize = 32 * 1024;

/// Largest compiled annotation, all its regular expressions together, in bytes of memory: some 170 ARNs in one, or 290 in
/// a list. What matching costs at worst grows with it, to about two tenths of a second for the longest role.
const MAX_COMPILED: usize = 512 * 1024;

/// And all globs of one together, of which matching costs far less.
const MAX_COMPILED_GLOBS: usize = 1024 * 1024;

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
    #[error("its patterns are too large when compiled; shorten them, or their repetitions")]
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

    fn forms(&self, against: Against) -> impl Iterator<Item = &'a str> {
        let (arn, written, relative) = match against {
            Against::EveryForm => (Some(self.arn), Some(self.written), self.relative),
            Against::Arn => (Some(self.arn), None, None),
            Against::Name => (None, None, self.relative),
        };
        [arn, written, relative].into_iter().flatten()
    }
}

/// What patterns are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    EveryForm,
    Arn,
    /// The name relative to the base ARN: kube2iam puts the base before an entry that is no ARN.
    Name,
}

/// A role's forms, and the number of the entry that allows it.
type Asked = HashMap<[Option<Box<str>>; 3], Option<usize>>;

/// What one annotation allows, read once.
#[derive(Debug)]
pub struct Policy {
    entries: Vec<String>,
    /// Patterns, each with the number of its entry.
    patterns: Vec<(Against, RegexSet, Vec<usize>)>,
    /// Roles that were asked about, and the number of the entry that allows each.
    asked: Mutex<Asked>,
}

impl Policy {
    /// More than a node has roles; then it begins anew.
    const MAX_ASKED: usize = 1024;

    /// kiam's `permitted`.
    ///
    /// # Errors
    /// Where the annotation is no regular expression; nothing is permitted then.
    pub fn permitted(annotation: &str, style: PermittedMatch, letters: Letters) -> Result<Self, PolicyError> {
        check_length(annotation)?;
        let mut policy = Self::of_entries(vec![annotation.to_owned()]);
        if annotation.trim().is_empty() {
            // As kiam has it; searched for, an empty pattern would match everything.
            policy.entries.clear();
            return Ok(policy);
        }
        let pattern = go_regexp(annotation);
        // By itself as well, so that the grouping can't mend (or be closed by) a pattern such as `a)|(b`.
        let by_itself = compile(&[pattern.to_string()], MAX_COMPILED, letters)?;
        let patterns = match style {
            PermittedMatch::Search => by_itself,
            // Grouped first: in `a|b` each alternative is anchored on both sides.
            PermittedMatch::Anchored => compile(&[format!("^(?:{pattern})$")], MAX_COMPILED, letters)?,
        };
        policy.patterns.push((Against::EveryForm, patterns, vec![0]));
        Ok(policy)
    }

    /// kube2iam's `allowed-roles`. As there, an entry that is no ARN is one of names under the base ARN, from their
    /// beginning; a regular expression need not go to their end.
    ///
    /// # Errors
    /// Where the annotation is no list, or an entry no pattern; nothing is allowed then.
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
                // An empty entry would be found everywhere; it names no role.
                (kind == against && !bare.is_empty()).then_some((number, bare))
            });
            let (numbers, bare): (Vec<usize>, Vec<String>) = wanted.unzip();
            let patterns: Vec<String> = match style {
                AllowedRolesStyle::Glob => bare.iter().map(|entry| glob(entry)).collect(),
                AllowedRolesStyle::Regexp => {
                    let bare: Vec<String> = bare.iter().map(|entry| go_regexp(entry).into_owned()).collect();
                    // By themselves as well, as above.
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

    /// The first entry, as written, that allows the role.
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

    /// The entries, as written.
    pub fn entries(&self) -> &[String] {
        &self.entries
    }
}

/// Whether an entry of `allowed-roles` is for ARNs (`arn:` in any case, as in the role's own annotation) or for names, and
/// what of it is compared.
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
        // Roles are ASCII, and `\w` and `\d` are so in Go, for which these patterns were written.
        .unicode(false)
        .case_insensitive(letters == Letters::InAnyCase)
        .size_limit(limit)
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

/// Unicode classes cost hundreds of megabytes before they come to a limit, so the flag that would bring them back is
/// refused. What can't be parsed is told by the compiler.
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
            "{shown:?}: the flag u (Unicode) has no use here, as roles are ASCII"
        ))
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
mod tests;
