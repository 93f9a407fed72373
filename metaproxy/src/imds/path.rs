//! Classifies requests by their path in normal form, and decides which of the node's metadata pods may see.
//!
//! The metadata service accepts more than one spelling of a path, and attackers try all of them. So a path is first
//! brought into normal form. Only the normal form is compared, and only the normal form is passed on. A path that has
//! no normal form is refused. The agent's own paths are answered in any spelling, because nothing is passed on for
//! them. Any other path is refused if it is not written in its normal form and could mean a secret.

mod list;
mod normal;
mod pattern;

use thiserror::Error;

pub use self::list::PassThrough;
use self::list::{Reading, is_of_tags, is_secret, reading_of_allowed};
use self::normal::Normal;
pub(super) use self::normal::encoded;
pub use self::pattern::BadPattern;
use self::pattern::Pattern;
use crate::telemetry::metrics::RequestKind;

/// Path segments that are never passed through, even if a flag allows them: credentials, and data with which a reader
/// can pose as the node to other services. They are compared in any letter case.
pub(crate) const DENIED_SEGMENTS: [&str; 8] = [
    "iam",
    "identity-credentials",
    "user-data",
    "public-keys",
    "managed-ssh-keys",
    "pkcs7",
    "rsa2048",
    "signature",
];

/// The resource that a request asks for.
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
        /// The name of the role in the request. The role's path may stand before it.
        name: String,
        /// Whether the request names `security-credentials-extended`.
        extended: bool,
    },
    /// Metadata of the node.
    Node(NodePath),
    /// A path that is not served to pods.
    Refused(Refusal),
}

impl Route {
    /// Returns the kind under which metrics count the request.
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

/// A path of the node's metadata that pods may see. Only [`Paths`] makes such values, and no other path is passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePath {
    path: String,
    is_listing: bool,
}

impl NodePath {
    /// Returns the path in normal form, with its leading slash.
    pub fn as_str(&self) -> &str {
        &self.path
    }

    /// Returns whether the path is a list from which [`Paths::visible`] removes entries.
    pub fn is_listing(&self) -> bool {
        self.is_listing
    }

    /// Returns whether the path is the list that contains `iam/`.
    pub fn lists_roles(&self) -> bool {
        let path = self.path.trim_end_matches('/');
        self.is_listing && path.splitn(3, '/').nth(2) == Some("meta-data")
    }
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The path has no normal form, or could mean a secret and is not written in its normal form.
    #[error("metaproxy does not serve this path: it is not written in its plain form.")]
    NotPlain,
    /// The path is a secret of the node.
    #[error(
        "metaproxy does not serve this path: what the node has there is secret from pods. Software that must read it runs \
         as a pod with hostNetwork and without a role."
    )]
    Secret,
    /// No flag allows the path.
    #[error(
        "metaproxy does not serve this path to pods; --allow-path lets more of the node's metadata through."
    )]
    NotAllowed,
}

/// The paths of the node's metadata that pods may see: those that `--pass-through` names, and those that
/// `--allow-path` adds.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    pass_through: PassThrough,
    more: Vec<Pattern>,
}

impl Paths {
    /// Compiles the patterns of `--allow-path`. Each of them must match a path from its beginning to its end: the
    /// whole path (`/latest/meta-data/tags/instance/Name`), the path after the version
    /// (`meta-data/tags/instance/Name`), or the path after `meta-data/` (`tags/instance/Name`). A slash at the end of
    /// a path is ignored. The lists that lead to a matching path are passed through too, and show only what pods may
    /// read.
    ///
    /// # Errors
    /// Returns an error for the first pattern that is not a regular expression, is too large, or lets no path
    /// through.
    pub fn new(pass_through: PassThrough, patterns: &[String]) -> Result<Self, BadPattern> {
        let more = pattern::compile(patterns)?;
        Ok(Self { pass_through, more })
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
        let segments: Vec<&str> = normal.segments.iter().map(String::as_str).collect();
        let rest = match segments.split_first() {
            Some((version, rest)) if is_version(version) => Some(rest),
            _ => None,
        };
        if let Some(own) = rest.and_then(own) {
            return own;
        }
        let written = normal.to_string();
        let is_plain = is_bare && written == path;
        if !is_plain && !rest.is_some_and(is_of_tags) && normal.has_sensitive_word(target) {
            return Route::Refused(Refusal::NotPlain);
        }
        let reading = match rest {
            _ if segments.is_empty() => Some(Reading::Listing).filter(|_| self.shows_anything()),
            Some(rest) if is_secret(rest) => return Route::Refused(Refusal::Secret),
            Some(rest) => self.reading(&segments.join("/"), &rest.join("/")),
            None => None,
        };
        match reading {
            Some(reading) => Route::Node(NodePath {
                path: written,
                is_listing: reading == Reading::Listing,
            }),
            None => Route::Refused(Refusal::NotAllowed),
        }
    }

    fn shows_anything(&self) -> bool {
        self.pass_through != PassThrough::None || !self.more.is_empty()
    }

    /// Returns how a path is passed through; `None` if it is not. `path` begins with the version, and `after_version`
    /// begins after it. Neither has a slash at its beginning or end.
    fn reading(&self, path: &str, after_version: &str) -> Option<Reading> {
        let listed = self.pass_through.reading(after_version);
        if listed == Some(Reading::Whole) || self.more.is_empty() {
            return listed;
        }
        let allowed = self.allowed_reading(path, after_version);
        allowed
            .filter(|allowed| *allowed == Reading::Whole)
            .or(listed)
            .or(allowed)
    }

    /// Returns how the patterns alone pass a path through. They are compared with all forms of the path: whole, after
    /// the version, and after `meta-data/`.
    fn allowed_reading(&self, path: &str, after_version: &str) -> Option<Reading> {
        let whole = format!("/{path}");
        let after_meta_data = match after_version.strip_prefix("meta-data") {
            Some("") => Some(""),
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        let forms: Vec<&str> = [&whole, after_version]
            .into_iter()
            .chain(after_meta_data)
            .collect();
        let of_patterns = |is_allowed: fn(&Pattern, &str) -> bool| {
            let mut forms = forms.iter();
            forms.any(|form| self.more.iter().any(|pattern| is_allowed(pattern, form)))
        };
        if of_patterns(|pattern, form| !form.is_empty() && pattern.matches(form)) {
            return Some(reading_of_allowed(after_version));
        }
        of_patterns(|pattern, form| form.is_empty() || pattern.leads_below(form)).then_some(Reading::Listing)
    }

    /// Returns the part of a list that a pod may see: the entries that it may read, and `iam/` if the pod has a role.
    /// It does not matter whether the node has a role.
    pub fn visible(&self, list: &NodePath, entries: &str, has_role: bool) -> String {
        let list_path = list.path.trim_end_matches('/');
        let is_visible = |entry: &&str| {
            let path = format!("{list_path}/{}", encoded(entry));
            !entry.is_empty() && matches!(self.classify(&path), Route::Node(_))
        };
        let mut visible: Vec<&str> = entries.lines().map(str::trim).filter(is_visible).collect();
        if has_role && list.lists_roles() {
            let at = visible.partition_point(|entry| *entry < "iam/");
            visible.insert(at, "iam/");
        }
        visible.join("\n")
    }
}

/// Returns the route of a path that the agent answers itself. `rest` is the path after the version.
fn own(rest: &[&str]) -> Option<Route> {
    let route = match rest {
        ["api", "token"] => Route::Token,
        ["meta-data", "iam"] => Route::Iam,
        ["meta-data", "iam", "info"] => Route::Info,
        [
            "meta-data",
            "iam",
            list @ ("security-credentials" | "security-credentials-extended"),
            name @ ..,
        ] => {
            if name.is_empty() {
                return Some(Route::Roles);
            }
            Route::Role {
                name: name.join("/"),
                extended: *list == "security-credentials-extended",
            }
        }
        _ => return None,
    };
    Some(route)
}

/// Classifies the path of nearly all requests, in the spelling that all clients use. The full classification gives
/// the same result, but costs more.
fn usual(target: &str) -> Option<Route> {
    let name = target.strip_prefix("/latest/meta-data/iam/security-credentials/")?;
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,@_-".contains(&byte);
    // IAM allows 64 characters (CreateRole). A name with dots is left to the full classification, because a name may
    // consist of dots only.
    let is_name = (1..=64).contains(&name.len()) && name.bytes().all(is_plain);
    is_name.then(|| Route::Role {
        name: name.to_owned(),
        extended: false,
    })
}

/// Returns whether a segment is a version: `latest`, `1.0`, or a date.
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

fn is_denied_segment(segment: &str) -> bool {
    let segment = segment.to_ascii_lowercase();
    // Some servers may read `user-data.` as `user-data`.
    let bare = segment.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    DENIED_SEGMENTS.contains(&bare) || segment.contains("credential")
}

#[cfg(test)]
mod tests;
