//! Explanations as text.

use std::fmt;

use super::{CredentialsLine, Explanation};

/// Label and text, the text's further lines below its first.
fn row(f: &mut fmt::Formatter<'_>, label: &str, text: &str) -> fmt::Result {
    for (index, line) in text.lines().enumerate() {
        let label = if index == 0 { label } else { "" };
        writeln!(f, "{label:<12}{line}")?;
    }
    Ok(())
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.uid {
            Some(uid) => row(f, "pod", &format!("{} ({uid})", self.pod))?,
            None => row(f, "pod", &self.pod)?,
        }
        row(f, "verdict", self.verdict.label())?;
        row(f, "because", &self.because)?;
        if let Some(role) = &self.role {
            row(f, "role", role)?;
        }
        if let Some(asked) = &self.asked_by {
            row(f, "asked by", &format!("{}: {:?}", asked.source, asked.value))?;
        }
        for (index, policy) in self.policies.iter().enumerate() {
            let says = match (&policy.allowed_by, &policy.problem) {
                (_, Some(problem)) => format!("cannot be used: {problem}"),
                (Some(entry), None) => format!("allows it, by {entry:?}"),
                (None, None) => format!("does not allow it: {}", policy.entries),
            };
            let label = if index == 0 { "namespace" } else { "" };
            row(f, label, &format!("{} {says}", policy.annotation))?;
        }
        if let Some(session) = &self.session {
            let shared = if session.shared {
                ", shared by its pods of this node"
            } else {
                ""
            };
            let mut text = format!("{}, assumed by {}{shared}", session.name, session.assumed_by);
            if let Some(id) = &session.external_id {
                text.push_str(&format!("\nexternal id {id}"));
            }
            for (key, value) in &session.tags {
                text.push_str(&format!("\ntag {key}={value}"));
            }
            row(f, "session", &text)?;
        }
        if let Some(credentials) = &self.credentials {
            row(f, "credentials", &credentials.to_string())?;
        }
        for (index, answer) in self.answers.iter().enumerate() {
            let label = if index == 0 { "answers" } else { "" };
            row(
                f,
                label,
                &format!("GET {}\n  {} {}", answer.path, answer.status, answer.says),
            )?;
        }
        for (index, hint) in self.hints.iter().enumerate() {
            let label = if index == 0 { "hint" } else { "" };
            row(f, label, hint)?;
        }
        Ok(())
    }
}

impl fmt::Display for CredentialsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.state)?;
        match (&self.expires, self.seconds_left) {
            (Some(expires), Some(0)) => write!(f, " at {expires}")?,
            (Some(expires), Some(left)) => write!(f, " until {expires} ({} left)", short(left))?,
            _ => {}
        }
        if let Some(id) = &self.access_key_id {
            write!(f, ", {id}")?;
        }
        if let Some(error) = &self.last_error {
            write!(f, "\nthe last attempt failed: {error}")?;
        }
        if let Some(retry) = self.seconds_to_retry {
            write!(f, "\nasked again in {} at the earliest", short(retry))?;
        }
        Ok(())
    }
}

/// Seconds as people say them.
pub fn short(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// One line for each pod.
pub fn table(explanations: &[Explanation]) -> String {
    let role = |one: &Explanation| one.role.clone().unwrap_or_else(|| "-".to_owned());
    let left = |one: &Explanation| {
        let left = one.credentials.as_ref().and_then(|line| line.seconds_left);
        left.map_or_else(|| "-".to_owned(), short)
    };
    let why = |one: &Explanation| match one.verdict {
        super::Verdict::Granted if one.hints.is_empty() => String::new(),
        _ if one.is_bad() => one.hints.first().unwrap_or(&one.because).clone(),
        _ => String::new(),
    };
    let rows = explanations.iter().map(|one| {
        [
            one.pod.clone(),
            one.verdict.label().to_owned(),
            role(one),
            left(one),
            why(one),
        ]
    });
    columns(&["POD", "VERDICT", "ROLE", "LEFT", "WHY"], rows)
}

/// Rows below a head, each column as wide as its widest cell.
pub fn columns<const N: usize>(head: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
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
