//! What a request asks for, by its path in normal form; and what of the node's metadata pods may see.
//!
//! The metadata service tolerates more than one spelling of a path, and attackers try all of them. So a path is brought
//! into normal form first, and only that is compared, and only that is passed on. What has no normal form is refused,
//! and so is what is not in it and could mean a secret.

use std::fmt;

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use crate::measured::RequestKind;

/// Longest path that is looked at, in bytes.
const MAX_LENGTH: usize = 2048;

/// How often a path may be percent-encoded over; what is encoded more often is refused.
const MAX_ENCODINGS: usize = 4;

/// Parts of a path that are never passed through, whatever else allows them: credentials, and what serves as the node
/// elsewhere. In any letter case.
pub(crate) const NEVER: [&str; 8] = [
    "iam",
    "identity-credentials",
    "user-data",
    "public-keys",
    "managed-ssh-keys",
    "pkcs7",
    "rsa2048",
    "signature",
];

/// Words that a path which is not in normal form must not contain, in any letter case.
const SMELLS: [&str; 5] = ["iam", "credential", "user-data", "security", "signature"];

/// Passed through by themselves, relative to the version. The listings on the way to what is passed through are here.
const EXACT: [&str; 18] = [
    "",
    "dynamic",
    "dynamic/instance-identity",
    "dynamic/instance-identity/document",
    "meta-data",
    "meta-data/ami-id",
    "meta-data/autoscaling",
    "meta-data/autoscaling/target-lifecycle-state",
    "meta-data/hostname",
    "meta-data/instance-id",
    "meta-data/instance-life-cycle",
    "meta-data/instance-type",
    "meta-data/local-hostname",
    "meta-data/local-ipv4",
    "meta-data/mac",
    "meta-data/network",
    "meta-data/network/interfaces",
    "meta-data/outpost-arn",
];

/// Passed through with everything below them, relative to the version.
const SUBTREES: [&str; 6] = [
    "meta-data/block-device-mapping",
    "meta-data/events",
    "meta-data/network/interfaces/macs",
    "meta-data/placement",
    "meta-data/services",
    "meta-data/spot",
];

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `VERSION/api/token`
    Token,
    /// `VERSION/meta-data/iam/`
    Iam,
    /// `VERSION/meta-data/iam/info`
    Info,
    /// The list of roles, with or without the last slash.
    Roles,
    /// The credentials of a role.
    Role {
        /// As the pod names it.
        name: String,
        /// Whether by `security-credentials-extended`.
        extended: bool,
    },
    /// Metadata of the node.
    Node(NodePath),
    /// Nothing that a pod is given.
    Refused(Refusal),
}

impl Route {
    /// As it is measured.
    pub fn kind(&self) -> RequestKind {
        match self {
            Self::Token => RequestKind::Token,
            Self::Iam | Self::Info | Self::Roles => RequestKind::Role,
            Self::Role { .. } => RequestKind::Credentials,
            Self::Node(_) => RequestKind::Node,
            Self::Refused(_) => RequestKind::Other,
        }
    }
}

/// A path of the node's metadata that pods may see. Only [`Paths`] makes one, and only it is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePath(String);

impl NodePath {
    /// In normal form, with its first slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// Another spelling of something.
    #[error("metaproxy does not serve this path: it is not written in its plain form.")]
    NotPlain,
    /// A secret of the node.
    #[error("metaproxy does not serve this path: what the node has there is secret from pods.")]
    Secret,
    /// Everything else.
    #[error(
        "metaproxy does not serve this path to pods; --allow-path lets more of the node's metadata through."
    )]
    NotAllowed,
}

/// An `--allow-path` that is no regular expression.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct BadPattern(String);

/// What pods may see of the node's metadata: the list that everybody has, and what `--allow-path` adds.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    more: Vec<Regex>,
}

impl Paths {
    /// With patterns, each of which must match a path from its beginning to its end: the whole path
    /// (`/latest/meta-data/tags/instance/Name`), the path after the version (`meta-data/tags/instance/Name`), or after
    /// `meta-data/` (`tags/instance/Name`).
    ///
    /// # Errors
    /// Names the pattern that is none.
    pub fn allowing(patterns: &[String]) -> Result<Self, BadPattern> {
        let compile = |pattern: &String| {
            let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(1 << 20).build();
            compile(pattern)
                .and_then(|_| compile(&format!("^(?:{pattern})$")))
                .map_err(|error| BadPattern(error.to_string()))
        };
        let more = patterns.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { more })
    }

    /// Classifies the path and query of a request target in origin form.
    pub fn classify(&self, target: &str) -> Route {
        usual(target).unwrap_or_else(|| self.classify_any(target))
    }

    fn classify_any(&self, target: &str) -> Route {
        let (path, is_bare) = match target.split_once('?') {
            Some((path, _)) => (path, false),
            None => (target, true),
        };
        let Some(normal) = Normal::of(path) else {
            return Route::Refused(Refusal::NotPlain);
        };
        let is_plain = is_bare && normal.to_string() == path;
        if !is_plain && normal.smells(target) {
            return Route::Refused(Refusal::NotPlain);
        }
        let Some((version, rest)) = normal.segments.split_first() else {
            return Route::Node(NodePath(normal.to_string()));
        };
        if !is_version(version) {
            return Route::Refused(Refusal::NotAllowed);
        }
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match (&rest[..], normal.ends_with_slash) {
            (["api", "token"], false) => Route::Token,
            (["meta-data", "iam"], _) => Route::Iam,
            (["meta-data", "iam", "info"], false) => Route::Info,
            (
                [
                    "meta-data",
                    "iam",
                    "security-credentials" | "security-credentials-extended",
                ],
                _,
            ) => Route::Roles,
            (
                [
                    "meta-data",
                    "iam",
                    list @ ("security-credentials" | "security-credentials-extended"),
                    name,
                ],
                false,
            ) => Route::Role {
                name: (*name).to_owned(),
                extended: *list == "security-credentials-extended",
            },
            _ if rest.iter().copied().any(is_never) => Route::Refused(Refusal::Secret),
            _ if is_for_everybody(&rest.join("/")) || self.allows_more(&normal.to_string()) => {
                Route::Node(NodePath(normal.to_string()))
            }
            _ => Route::Refused(Refusal::NotAllowed),
        }
    }

    fn allows_more(&self, path: &str) -> bool {
        let after_version = path.splitn(3, '/').nth(2);
        let after_meta_data = after_version.and_then(|rest| rest.strip_prefix("meta-data/"));
        let forms = [Some(path), after_version, after_meta_data];
        self.more
            .iter()
            .any(|pattern| forms.iter().flatten().any(|form| pattern.is_match(form)))
    }
}

/// What nearly all requests ask for, as all clients spell it; it is nothing else when it is looked at in full.
fn usual(target: &str) -> Option<Route> {
    let name = target.strip_prefix("/latest/meta-data/iam/security-credentials/")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,@_-".contains(&byte);
    // 64 characters is what IAM allows (CreateRole); dots are left to the full look, as a name may be all dots.
    let is_name = (1..=64).contains(&name.len()) && name.bytes().all(is_plain);
    is_name.then(|| Route::Role {
        name: name.to_owned(),
        extended: false,
    })
}

fn is_for_everybody(rest: &str) -> bool {
    let is_in = |tree: &&str| {
        let below = rest.strip_prefix(*tree);
        below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
    };
    EXACT.contains(&rest) || SUBTREES.iter().any(is_in)
}

/// A path in normal form: nothing is encoded, empty, `.` or `..`.
#[derive(Debug)]
struct Normal {
    segments: Vec<String>,
    ends_with_slash: bool,
}

impl Normal {
    /// `None` where there is none, or where bytes are in it that no metadata path has.
    fn of(path: &str) -> Option<Self> {
        if path.len() > MAX_LENGTH {
            return None;
        }
        let decoded = decoded(path)?;
        let is_harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,=/".contains(&byte);
        if !decoded.starts_with('/') || !decoded.bytes().all(is_harmless) {
            return None;
        }
        let mut segments: Vec<&str> = Vec::new();
        for segment in decoded.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop()?;
                }
                other => segments.push(other),
            }
        }
        let last = decoded.rsplit('/').next().unwrap_or_default();
        Some(Self {
            ends_with_slash: matches!(last, "" | "." | ".."),
            segments: segments.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Whether it, or the target that it was made of, could mean a secret.
    fn smells(&self, target: &str) -> bool {
        let texts = [target.to_ascii_lowercase(), self.to_string().to_ascii_lowercase()];
        texts
            .iter()
            .any(|text| SMELLS.iter().any(|word| text.contains(word)))
            || self.segments.iter().any(|segment| is_never(segment))
    }
}

impl fmt::Display for Normal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            write!(f, "/{segment}")?;
        }
        if self.ends_with_slash || self.segments.is_empty() {
            f.write_str("/")?;
        }
        Ok(())
    }
}

/// With no percent-encoding left, however often it was encoded over.
fn decoded(path: &str) -> Option<String> {
    let mut text = path.as_bytes().to_vec();
    for _ in 0..=MAX_ENCODINGS {
        if !text.contains(&b'%') {
            return String::from_utf8(text).ok();
        }
        let mut decoded = Vec::with_capacity(text.len());
        let mut rest = &text[..];
        while let Some((byte, after)) = rest.split_first() {
            if *byte == b'%' {
                let (digits, after) = after.split_first_chunk::<2>()?;
                let digits = digits.iter().all(u8::is_ascii_hexdigit).then_some(digits)?;
                decoded.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = after;
            } else {
                decoded.push(*byte);
                rest = after;
            }
        }
        text = decoded;
    }
    None
}

/// `latest`, `1.0`, or a date.
pub(super) fn is_version(segment: &str) -> bool {
    let is_date = || {
        segment.len() == 10
            && segment.bytes().enumerate().all(|(index, byte)| match index {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
    };
    segment == "latest" || segment == "1.0" || is_date()
}

fn is_never(segment: &str) -> bool {
    let segment = segment.to_ascii_lowercase();
    // `user-data.` may mean `user-data` to somebody.
    let bare = segment.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    NEVER.contains(&bare) || segment.contains("credential")
}

#[cfg(test)]
mod tests;
