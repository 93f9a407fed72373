//! Writes explanations as text.

use std::fmt;

use super::{CredentialsLine, Explanation, PolicyLine, SessionLine};

/// Escapes control characters, and characters that change the direction of writing. Names, annotations and errors
/// come from other users, and must neither control the operator's terminal nor look like another text.
pub fn printable(text: &str) -> String {
    let is_harmful = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if is_harmful(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Writes a label with lines of text beside it.
fn rows(
    f: &mut fmt::Formatter<'_>,
    label: &str,
    lines: impl IntoIterator<Item = impl AsRef<str>>,
) -> fmt::Result {
    for (index, line) in lines.into_iter().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(f, "{label:<12}{}", printable(line.as_ref()))?;
    }
    Ok(())
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uid = self.uid.as_ref().map(|uid| format!(" ({uid})"));
        rows(f, "pod", [format!("{}{}", self.pod, uid.unwrap_or_default())])?;
        rows(f, "verdict", [self.verdict.label()])?;
        rows(f, "because", [&self.because])?;
        rows(f, "role", &self.role)?;
        let asked = self.asked_by.as_ref();
        rows(
            f,
            "asked by",
            asked.map(|asked| format!("{}: {:?}", asked.source, asked.value)),
        )?;
        rows(f, "namespace", self.policies.iter().map(ToString::to_string))?;
        rows(f, "session", self.session.iter().flat_map(SessionLine::lines))?;
        rows(
            f,
            "credentials",
            self.credentials.iter().flat_map(CredentialsLine::lines),
        )?;
        let answers = self.answers.iter().flat_map(|answer| {
            [
                format!("GET {}", answer.path),
                format!("  {} {}", answer.status, answer.says),
            ]
        });
        rows(f, "answers", answers)?;
        rows(f, "hint", &self.hints)
    }
}

impl fmt::Display for PolicyLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.annotation)?;
        match (&self.allowed_by, &self.problem) {
            (_, Some(problem)) => write!(f, " cannot be used: {problem}"),
            (Some(entry), None) => write!(f, " allows it, by {entry:?}"),
            (None, None) => write!(f, " does not allow it: {}", self.entries),
        }
    }
}

impl SessionLine {
    fn lines(&self) -> Vec<String> {
        let shared = if self.shared {
            ", shared by the pods of this node with this role"
        } else {
            ""
        };
        let mut lines = vec![format!("{}, assumed by {}{shared}", self.name, self.assumed_by)];
        lines.extend(self.external_id.iter().map(|id| format!("external id {id}")));
        lines.extend(self.tags.iter().map(|(key, value)| format!("tag {key}={value}")));
        lines
    }
}

impl CredentialsLine {
    fn lines(&self) -> Vec<String> {
        let mut first = self.state.clone();
        match (&self.expires, self.seconds_left) {
            (Some(expires), Some(0)) => first.push_str(&format!(" at {expires}")),
            (Some(expires), Some(left)) => {
                first.push_str(&format!(" until {expires} ({} left)", short(left)));
            }
            _ => {}
        }
        if let Some(id) = &self.access_key_id {
            first.push_str(&format!(", {id}"));
        }
        let mut lines = vec![first];
        if let Some(error) = &self.last_error {
            lines.push(format!("the last attempt failed: {error}"));
        }
        if let Some(retry) = self.seconds_to_retry {
            lines.push(format!("tried again in {} at the earliest", short(retry)));
        }
        lines
    }
}

/// Writes seconds as a short duration, such as `2h05m`.
pub fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// Writes a table with one line for each pod.
pub fn table(explanations: &[Explanation]) -> String {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = explanations.iter().map(|one| {
        let left = one.credentials.as_ref().and_then(|line| line.seconds_left);
        let why = one.hints.first().unwrap_or(&one.because);
        [
            one.pod.clone(),
            one.verdict.label().to_owned(),
            or_dash(one.role.clone()),
            or_dash(left.map(short)),
            if one.is_bad() { why.clone() } else { String::new() },
        ]
    });
    columns(&["POD", "VERDICT", "ROLE", "LEFT", "WHY"], rows)
}

/// Writes rows below a head, with each column as wide as its widest cell.
pub fn columns<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows.map(|row| row.map(|cell| printable(&cell))));
    let mut widths = [0; N];
    for row in &all {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |row: &[String; N]| {
        let cells = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::{AnswerLine, AskedBy, Verdict};
    use rstest::rstest;

    #[rstest]
    #[case::plain("naïve – 日本", "naïve – 日本")]
    #[case::escape("\x1b[2J\x07", "\\u{1b}[2J\\u{7}")]
    #[case::of_eight_bits("\u{9b}31m", "\\u{9b}31m")]
    #[case::another_line("app\nverdict granted\r", "app\\nverdict granted\\r")]
    #[case::turned_round("\u{202e}nimda\u{202c}", "\\u{202e}nimda\\u{202c}")]
    #[case::isolated("\u{2066}a\u{2069}", "\\u{2066}a\\u{2069}")]
    fn control_and_direction_characters_are_escaped(#[case] text: &str, #[case] shown: &str) {
        assert_eq!(printable(text), shown);
    }

    fn hostile() -> Explanation {
        let text = || "a\x1b[2J\nverdict     granted\u{202e}".to_owned();
        Explanation {
            pod: text(),
            uid: Some(text()),
            verdict: Verdict::Refused,
            because: text(),
            role: Some(text()),
            asked_by: Some(AskedBy {
                source: text(),
                value: text(),
            }),
            policies: vec![PolicyLine {
                annotation: text(),
                entries: text(),
                allowed_by: None,
                problem: Some(text()),
            }],
            session: Some(SessionLine {
                name: text(),
                assumed_by: text(),
                external_id: Some(text()),
                tags: [(text(), text())].into(),
                shared: false,
            }),
            credentials: Some(CredentialsLine {
                state: text(),
                access_key_id: Some(text()),
                obtained: None,
                expires: Some(text()),
                seconds_left: Some(1),
                last_error: Some(text()),
                seconds_to_retry: None,
            }),
            answers: vec![AnswerLine {
                path: text(),
                status: 200,
                says: text(),
            }],
            suspicious: false,
            other_credentials: vec![text()],
            hints: vec![text()],
        }
    }

    #[test]
    fn values_cannot_move_the_cursor_or_add_a_line() {
        let one = hostile();
        for text in [one.to_string(), table(&[one])] {
            assert!(
                text.lines()
                    .all(|line| !line.trim_start().starts_with("verdict     granted")),
                "{text}"
            );
            let obeyed: Vec<char> = text
                .chars()
                .filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}')
                .collect();
            assert!(obeyed.is_empty(), "{obeyed:?} in {text}");
            assert!(text.contains("\\u{1b}[2J"), "{text}");
        }
    }
}
