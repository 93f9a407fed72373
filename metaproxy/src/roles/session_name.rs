//! Makes names of sessions, which CloudTrail and `GetCallerIdentity` show.

use std::fmt;

use ring::digest::{SHA256, digest};

/// The smallest and the largest length of a `RoleSessionName`, which is 2 to 64 of `[\w+=,.@-]` (STS, AssumeRole).
const MIN: usize = 2;
const MAX: usize = 64;

/// The number of hexadecimal digits of the hash that replaces the end of a long name.
const HASH: usize = 8;

/// A `RoleSessionName` that STS accepts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(Box<str>);

impl SessionName {
    /// Returns `<namespace>.<pod>`: it identifies the pod in CloudTrail, and stays the same at each renewal.
    pub fn of_pod(namespace: &str, pod: &str) -> Self {
        Self::cleaned(&format!("{namespace}.{pod}"))
    }

    /// Replaces characters that STS refuses by `-`, as kiam does. If the result is too long, a hash of the original
    /// replaces its end, so that long names that differ only at their end stay different.
    pub fn cleaned(text: &str) -> Self {
        let fits = |character: char| character.is_ascii_alphanumeric() || "_+=,.@-".contains(character);
        let clean: String = text
            .chars()
            .map(|character| if fits(character) { character } else { '-' })
            .collect();
        let name = if clean.len() > MAX {
            let hash: String = digest(&SHA256, text.as_bytes())
                .as_ref()
                .iter()
                .take(HASH / 2)
                .map(|b| format!("{b:02x}"))
                .collect();
            let kept: String = clean.chars().take(MAX - HASH - 1).collect();
            format!("{kept}-{hash}")
        } else {
            format!("{clean:-<MIN$}")
        };
        Self(name.into())
    }

    /// Returns the name as STS accepts it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_ordinary_name_is_unchanged() {
        assert_eq!(
            SessionName::of_pod("apps", "web-7d4b9c-x2x").as_str(),
            "apps.web-7d4b9c-x2x"
        );
    }

    #[test]
    fn refused_characters_are_replaced_and_short_names_are_padded() {
        for (text, want) in [
            ("my session", "my-session"),
            ("a/b:c", "a-b-c"),
            ("ö", "--"),
            ("x", "x-"),
            ("ok", "ok"),
        ] {
            assert_eq!(SessionName::cleaned(text).as_str(), want);
        }
    }

    #[test]
    fn long_names_that_differ_at_the_end_stay_different() {
        let (a, b) = (format!("{}-a", "p".repeat(90)), format!("{}-b", "p".repeat(90)));
        let (a, b) = (SessionName::of_pod("ns", &a), SessionName::of_pod("ns", &b));
        assert_ne!(a, b);
        assert_eq!(a.as_str().len(), 64);
    }

    proptest! {
        #[test]
        fn any_text_gives_a_name_that_sts_accepts(text in "\\PC{0,200}") {
            let name = SessionName::cleaned(&text);
            prop_assert!((2..=64).contains(&name.as_str().len()));
            prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)));
            prop_assert_eq!(SessionName::cleaned(&text), name);
        }
    }
}
