//! Names of sessions, as they appear in CloudTrail and in the pod's own identity.

use std::fmt;

use ring::digest::{SHA256, digest};

/// STS: `RoleSessionName` is 2 to 64 of `[\w+=,.@-]`.
const MIN: usize = 2;
const MAX: usize = 64;

/// Hexadecimal digits of the hash that stands in for what was cut off.
const HASH: usize = 8;

/// A `RoleSessionName` that STS takes, whatever it was made from.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(Box<str>);

impl SessionName {
    /// `<namespace>.<pod>`: tells in CloudTrail which pod it was, and stays the same at each renewal.
    pub fn of_pod(namespace: &str, pod: &str) -> Self {
        Self::cleaned(&format!("{namespace}.{pod}"))
    }

    /// Characters that STS refuses become `-`, as in kiam. Where the result is too long, a hash of the original stands in
    /// for what was cut off, so that long names that differ only at their end stay different.
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

    /// As STS takes it.
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
    fn an_ordinary_pod_is_named_as_it_is() {
        assert_eq!(
            SessionName::of_pod("apps", "web-7d4b9c-x2x").as_str(),
            "apps.web-7d4b9c-x2x"
        );
    }

    #[test]
    fn what_sts_refuses_is_replaced_and_what_is_too_short_filled_up() {
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
        fn whatever_it_is_made_from_sts_takes_it(text in "\\PC{0,200}") {
            let name = SessionName::cleaned(&text);
            prop_assert!((2..=64).contains(&name.as_str().len()));
            prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b)));
            prop_assert_eq!(SessionName::cleaned(&text), name);
        }
    }
}
