//! Paths in normal form.

use std::fmt::{self, Write as _};

use super::is_denied_segment;
use super::list::is_of_tags;

/// Longest path that is looked at, in bytes.
pub(super) const MAX_LENGTH: usize = 2048;

/// How often a path may be percent-encoded over; what is encoded more often is refused.
pub(super) const MAX_ENCODINGS: usize = 4;

/// Words that a path which is not in normal form must not contain to be passed through, in any letter case.
const SENSITIVE_WORDS: [&str; 5] = ["iam", "credential", "user-data", "security", "signature"];

/// A path in normal form: no part of it is encoded, empty, `.` or `..`.
///
/// Displays as it is passed on: with what is not plain encoded once, which no path has but those of tags. Nothing that could
/// be an escape is left in it, so it means the same however often it is decoded.
#[derive(Debug)]
pub(super) struct Normal {
    pub(super) segments: Vec<String>,
    ends_with_slash: bool,
}

impl Normal {
    /// `None` where there is none, or where bytes are in it that no metadata path has.
    pub(super) fn of(path: &str) -> Option<Self> {
        if path.len() > MAX_LENGTH {
            return None;
        }
        let decoded = decoded(path)?;
        if !decoded.starts_with('/') {
            return None;
        }
        let mut segments: Vec<&str> = Vec::new();
        let mut has_dots = false;
        for segment in decoded.split('/') {
            has_dots |= matches!(segment, "." | "..");
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop()?;
                }
                other => segments.push(other),
            }
        }
        let keys = segments
            .get(1..)
            .filter(|path| is_of_tags(path))
            .map(|path| &path[3..]);
        let is_sound = decoded.bytes().all(is_plain)
            || (!has_dots
                && keys.is_some_and(|keys| {
                    let before = segments.len() - keys.len();
                    let is_plain = segments[..before]
                        .iter()
                        .all(|segment| segment.bytes().all(is_plain));
                    is_plain && keys.iter().all(|key| is_key(key))
                }));
        let last = decoded.rsplit('/').next().unwrap_or_default();
        is_sound.then(|| Self {
            ends_with_slash: matches!(last, "" | "." | ".."),
            segments: segments.into_iter().map(str::to_owned).collect(),
        })
    }

    /// Whether it, or the target that it was made of, could mean a secret.
    pub(super) fn has_sensitive_word(&self, target: &str) -> bool {
        let texts = [target.to_ascii_lowercase(), self.to_string().to_ascii_lowercase()];
        texts
            .iter()
            .any(|text| SENSITIVE_WORDS.iter().any(|word| text.contains(word)))
            || self.segments.iter().any(|segment| is_denied_segment(segment))
    }
}

impl fmt::Display for Normal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for segment in &self.segments {
            f.write_char('/')?;
            f.write_str(&encoded(segment))?;
        }
        if self.ends_with_slash || self.segments.is_empty() {
            f.write_char('/')?;
        }
        Ok(())
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:@!$&'()*+,=/".contains(&byte)
}

/// Whether this may be a part of a tag's key: any text, but for what some server may take for the end of a line or a way up.
fn is_key(segment: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-=._:@~".contains(c);
    let is_way_up = segment.contains("..") && !segment.chars().all(is_name);
    !is_way_up && !segment.contains(|c: char| c.is_control() || c == '\\')
}

/// With everything percent-encoded that is not plain.
pub(in crate::imds) fn encoded(text: &str) -> String {
    text.bytes()
        .fold(String::with_capacity(text.len()), |mut encoded, byte| {
            if is_plain(byte) {
                encoded.push(char::from(byte));
            } else {
                // Writing to a string does not fail.
                let _ = write!(encoded, "%{byte:02X}");
            }
            encoded
        })
}

/// With no escape left, however often it was encoded over; a `%` that begins none stays.
fn decoded(path: &str) -> Option<String> {
    let mut text = path.as_bytes().to_vec();
    for _ in 0..=MAX_ENCODINGS {
        let once = decoded_once(&text);
        if once.len() == text.len() {
            return String::from_utf8(text).ok();
        }
        text = once;
    }
    None
}

fn decoded_once(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        let escape = match (byte, after) {
            (b'%', [high, low, after @ ..]) => digit(*high).zip(digit(*low)).zip(Some(after)),
            _ => None,
        };
        match escape {
            Some(((high, low), after)) => {
                decoded.push(high << 4 | low);
                rest = after;
            }
            None => {
                decoded.push(*byte);
                rest = after;
            }
        }
    }
    decoded
}
