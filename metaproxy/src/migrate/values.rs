//! Collects values and notes, and writes them as a values file.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::MigrateError;
use super::manifest::Workload;
use super::words::Flag;

/// The values and notes of a values file.
#[derive(Debug)]
pub struct Values {
    head: String,
    /// Maps section (empty for the top) → key → value and comment, in the order of writing.
    set: BTreeMap<&'static str, Vec<(&'static str, Value, String)>>,
    /// The entries of `extraEnv`, each with its source.
    env: Vec<(Value, String)>,
    /// Notes: a subject and a sentence each.
    same: Vec<(String, String)>,
    gone: Vec<(String, String)>,
    left: Vec<(String, String)>,
    changes: Vec<(String, String)>,
}

impl Values {
    /// Makes values with the advice that always applies: to observe before anything changes.
    pub fn new(of: &str, workloads: &[Workload]) -> Self {
        let names: Vec<&str> = workloads
            .iter()
            .map(|workload| workload.name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        let whose = if names.is_empty() {
            "its command line".to_owned()
        } else {
            names.join(" and ")
        };
        let mut values = Self {
            head: format!("Values for the chart of metaproxy, made from {of}'s flags ({whose})."),
            set: BTreeMap::new(),
            env: Vec::new(),
            same: Vec::new(),
            gone: Vec::new(),
            left: Vec::new(),
            changes: Vec::new(),
        };
        values.set(
            "",
            "mode",
            "observe",
            "Changes nothing, and logs what would change; set it to enforce when that is right",
        );
        values
    }

    /// Sets a value; the last one counts.
    pub fn set(
        &mut self,
        section: &'static str,
        key: &'static str,
        value: impl Into<Value>,
        why: impl Into<String>,
    ) {
        let (value, why) = (value.into(), why.into());
        let section = self.set.entry(section).or_default();
        match section.iter_mut().find(|(known, ..)| *known == key) {
            // If two flags set the value, the comment names both.
            Some(known) if known.2.starts_with("--") => {
                known.1 = value;
                if !known.2.contains(&why) {
                    known.2 = format!("{}; {why}", known.2);
                }
            }
            Some(known) => (known.1, known.2) = (value, why),
            None => section.push((key, value, why)),
        }
    }

    /// Returns a value that is set, and its source.
    pub fn get(&self, section: &str, key: &str) -> Option<(&Value, &str)> {
        let entries = self.set.get(section)?;
        let (_, value, why) = entries.iter().find(|(known, ..)| *known == key)?;
        Some((value, why))
    }

    /// Sets a value to that of a flag.
    ///
    /// # Errors
    /// If the manifest does not have the flag's value.
    pub fn keep(
        &mut self,
        section: &'static str,
        key: &'static str,
        flag: &Flag,
    ) -> Result<(), MigrateError> {
        self.set(section, key, flag.known()?, format!("--{}", flag.name));
        Ok(())
    }

    /// Sets a role or region, if there is one.
    pub fn keep_role(
        &mut self,
        section: &'static str,
        key: &'static str,
        flag: &Flag,
        role: Option<impl Into<Value>>,
    ) {
        match role {
            Some(role) => self.set(section, key, role, format!("--{}", flag.name)),
            None => self.same(flag.shown(), "it is empty, as if it were not given"),
        }
    }

    /// Adds a variable of the agent.
    pub fn add_env(&mut self, entry: Value, why: impl Into<String>) {
        let is_known = self.env.iter().any(|(known, _)| known["name"] == entry["name"]);
        if !is_known {
            self.env.push((entry, why.into()));
        }
    }

    /// Notes a flag whose effect metaproxy has by default.
    pub fn same(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.same.push((what.into(), why.into()));
    }

    /// Notes a flag without a counterpart.
    pub fn gone(&mut self, flag: &Flag, why: impl Into<String>) {
        self.gone.push((flag.shown(), why.into()));
    }

    /// Notes a part of the pod template that is left out.
    pub fn left(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.left.push((what.into(), why.into()));
    }

    /// Notes a difference that pods will see.
    pub fn change(&mut self, what: impl Into<String>, how: impl Into<String>) {
        self.changes.push((what.into(), how.into()));
    }

    /// Notes a flag that is not known.
    pub fn unknown(&mut self, flag: &Flag) {
        self.gone(
            flag,
            "not known to this program; check whether you need what it did",
        );
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        comment(f, "", &self.head)?;
        comment(
            f,
            "",
            "deploy/docs/migration.md has the order of steps, and how to go back. `metaproxy explain --manifests` \
             says what each of your pods will get.",
        )?;
        for (section, entries) in &self.set {
            let indent = if section.is_empty() { "" } else { "  " };
            writeln!(f)?;
            if !section.is_empty() {
                writeln!(f, "{section}:")?;
            }
            for (key, value, why) in entries {
                comment(f, indent, why)?;
                // Each JSON text is YAML.
                writeln!(f, "{indent}{key}: {value}")?;
            }
        }
        if !self.env.is_empty() {
            writeln!(f, "\nextraEnv:")?;
            for (entry, why) in &self.env {
                comment(f, "  ", why)?;
                writeln!(f, "  - {entry}")?;
            }
        }
        let lists = [
            ("As metaproxy does by itself:", &self.same),
            ("Flags without counterpart:", &self.gone),
            ("Left out of the pod template:", &self.left),
            ("What changes for pods:", &self.changes),
        ];
        for (title, list) in lists {
            if list.is_empty() {
                continue;
            }
            writeln!(f, "\n# {title}")?;
            for (flags, why) in by_reason(list) {
                comment(f, "", &format!("  {}: {why}", flags.join(", ")))?;
            }
        }
        Ok(())
    }
}

/// Groups flags by their reason, in order.
fn by_reason(list: &[(String, String)]) -> Vec<(Vec<&str>, &str)> {
    let mut grouped: Vec<(Vec<&str>, &str)> = Vec::new();
    for (flag, why) in list {
        match grouped.iter_mut().find(|(_, known)| known == why) {
            Some((flags, _)) if flags.contains(&flag.as_str()) => {}
            Some((flags, _)) => flags.push(flag),
            None => grouped.push((vec![flag], why)),
        }
    }
    grouped
}

/// Wraps a text into comment lines of a readable length. Nothing in the text can end the comment.
fn comment(f: &mut fmt::Formatter<'_>, indent: &str, text: &str) -> fmt::Result {
    const WIDTH: usize = 112;
    let lead: String = text.chars().take_while(|c| *c == ' ').collect();
    let mut line = String::new();
    let mut further = "";
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + lead.len() + line.len() + word.len() + 3 > WIDTH {
            writeln!(f, "{indent}# {lead}{further}{line}")?;
            line.clear();
            further = if lead.is_empty() { "" } else { "  " };
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(f, "{indent}# {lead}{further}{line}")
}
