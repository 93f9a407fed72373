//! Translates Go's regular expressions, in which the annotations and flags of kiam and kube2iam are written.

use std::borrow::Cow;

/// Replaces `\Q…\E`, which quotes text in Go (`regexp/syntax`) and which the `regex` crate does not support, by the
/// escaped text. Everything else stays as it is; so does a `\Q` in a class, which Go refuses too.
pub fn go_regexp(pattern: &str) -> Cow<'_, str> {
    if !pattern.contains("\\Q") {
        return Cow::Borrowed(pattern);
    }
    let mut out = String::with_capacity(pattern.len() + 16);
    let (mut rest, mut in_class) = (pattern, false);
    while let Some(next) = rest.chars().next() {
        if let Some(quoted) = rest.strip_prefix("\\Q").filter(|_| !in_class) {
            let (text, after) = quoted.split_once("\\E").unwrap_or((quoted, ""));
            out.push_str(&regex::escape(text));
            rest = after;
            continue;
        }
        let escaped = next == '\\';
        in_class = match next {
            '[' => true,
            ']' => false,
            _ => in_class,
        };
        let taken = rest.chars().take(if escaped { 2 } else { 1 });
        let width: usize = taken.map(char::len_utf8).sum();
        out.push_str(&rest[..width]);
        rest = &rest[width..];
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::none("app-.*", "app-.*")]
    #[case::quoted("\\Qapp.web\\E-.*", "app\\.web-.*")]
    #[case::to_the_end("a|\\Qb.c", "a|b\\.c")]
    #[case::a_backslash("\\\\Qx", "\\\\Qx")]
    #[case::quoting_a_backslash("\\Qa\\b\\Ec", "a\\\\bc")]
    #[case::a_class("[\\Q]x", "[\\Q]x")]
    fn quoted_text_is_escaped(#[case] go: &str, #[case] ours: &str) {
        assert_eq!(go_regexp(go), ours);
    }
}
