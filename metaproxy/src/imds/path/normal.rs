//! Brings paths into normal form.

use std::fmt::{self, Write as _};

use super::is_denied_segment;
use super::list::is_of_tags;

/// The maximum length of a path, in bytes. A longer path is refused.
pub(super) const MAX_LENGTH: usize = 2048;

/// The maximum number of times that a path may be percent-encoded. A path that is encoded more often is refused.
pub(super) const MAX_ENCODINGS: usize = 4;

/// Words, in any letter case, that a path must not contain if it is not written in normal form. Such a path is
/// refused.
const SENSITIVE_WORDS: [&str; 5] = ["iam", "credential", "user-data", "security", "signature"];

/// A path in normal form: no segment of it is encoded, empty, `.` or `..`.
///
/// `Display` writes the path as it is passed on. It percent-encodes each byte that is not plain; only keys of tags
/// have such bytes. The decoded segments contain no escapes, so the path means the same however often it is decoded.
#[derive(Debug)]
pub(super) struct Normal {
    pub(super) segments: Vec<String>,
    ends_with_slash: bool,
}

impl Normal {
    /// Returns the normal form of a path. Returns `None` if it has none, or if it contains bytes that no metadata
    /// path has.
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

    /// Returns whether the path, or the request target that it comes from, could mean a secret.
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

/// Returns whether a segment may be part of a tag's key. Any text may, unless some servers could read it as the end
/// of a line or as a way to the parent path.
fn is_key(segment: &str) -> bool {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "+-=._:@~".contains(c);
    let is_way_up = segment.contains("..") && !segment.chars().all(is_name);
    !is_way_up && !segment.contains(|c: char| c.is_control() || c == '\\')
}

/// Percent-encodes all bytes of a text that are not plain.
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

/// Decodes a path until it contains no escape. A `%` that does not begin an escape stays. Returns `None` if the path
/// is encoded more often than [`MAX_ENCODINGS`], or is not UTF-8.
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
