//! The status of an agent, which `metaproxy status` and the admin page show.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::explain::{columns, printable, short};

/// The status of an agent. No field is secret. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The version of the running program.
    pub version: String,
    /// `enforce`, `observe` or `firewall`
    pub mode: String,
    /// The node's name, if the agent has been given one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The process id, in the agent's own PID namespace.
    pub pid: u32,
    /// The time of the agent's start.
    pub started: String,
    /// The time since the start, in seconds.
    pub uptime_seconds: u64,
    /// Whether pods are served.
    pub ready: bool,
    /// The condition of each part.
    pub parts: Vec<PartLine>,
    /// The addresses of the listeners. None while pods are only observed.
    pub listeners: Vec<String>,
    /// The path of the pods' cgroup, if it exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The attached programs.
    pub attached: Vec<AttachedLine>,
    /// The pods of this node that have a role or request one, sorted by name.
    pub pods: Vec<PodLine>,
    /// The number of all known pods of this node.
    pub pods_known: usize,
    /// Connections that were refused or did not reach the agent, by kind and pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedLine>,
    /// The counters of connections, in the agent and in the kernel.
    pub counters: BTreeMap<String, u64>,
}

/// Refused connections of one kind and one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefusedLine {
    /// `namespace/name`, if a pod is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The kind, as in metrics.
    pub kind: String,
    /// The number of connections since the start.
    pub connections: u64,
    /// The meaning of the kind, and what to do.
    pub explanation: String,
}

impl RefusedLine {
    /// Returns the cells of a table's row: pod, kind, connections, explanation.
    pub fn cells(&self) -> [String; 4] {
        [
            self.pod.clone().unwrap_or_else(|| "(no pod known)".to_owned()),
            self.kind.clone(),
            self.connections.to_string(),
            self.explanation.clone(),
        ]
    }

    /// The head of the table.
    pub const HEAD: [&'static str; 4] = ["REFUSED", "KIND", "CONNECTIONS", "MEANING"];
}

/// A part of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartLine {
    /// The name of the part.
    pub part: String,
    /// The condition: `ok`, `degraded` or `failed`.
    pub condition: String,
    /// The problem, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// An attached program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachedLine {
    /// The id of the link, as `bpftool link` shows it.
    pub link: u32,
    /// The program's name.
    pub program: String,
    /// The cgroup or the interface that it is attached to.
    pub target: String,
}

/// A pod that has a role or requests one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLine {
    /// `namespace/name`
    pub pod: String,
    /// The verdict, as in an explanation.
    pub verdict: String,
    /// The ARN of the role, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The time at which its session ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_ends: Option<String>,
    /// The time until the session ends, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The reason why it has no credentials, or the last error of STS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

impl Status {
    /// Returns the pods, those with an error first.
    pub fn pods_by_trouble(&self) -> Vec<&PodLine> {
        let mut pods: Vec<&PodLine> = self.pods.iter().collect();
        pods.sort_by_key(|pod| (pod.last_error.is_none(), &pod.pod));
        pods
    }
}

impl PodLine {
    /// Returns the cells of a table's row: pod, verdict, role, time left, last error.
    pub fn cells(&self) -> [String; 5] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        [
            self.pod.clone(),
            self.verdict.clone(),
            or_dash(self.role.clone()),
            or_dash(self.seconds_left.map(short)),
            self.last_error.clone().unwrap_or_default(),
        ]
    }

    /// The head of the table.
    pub const HEAD: [&'static str; 5] = ["POD", "VERDICT", "ROLE", "LEFT", "LAST ERROR"];
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ready = if self.ready { "ready" } else { "NOT READY" };
        let node = self.node.as_deref().unwrap_or("(not named)");
        writeln!(
            f,
            "metaproxy {} on node {}, {}: {ready}, up {} (process {})",
            printable(&self.version),
            printable(node),
            printable(&self.mode),
            short(self.uptime_seconds),
            self.pid
        )?;
        for part in self.parts.iter().filter(|part| part.condition != "ok") {
            let detail = part.detail.as_deref().unwrap_or_default();
            let text = format!("{} {}: {detail}", part.part, part.condition);
            writeln!(f, "  {}", printable(&text))?;
        }
        if !self.listeners.is_empty() {
            writeln!(f, "listens on  {}", printable(&self.listeners.join(", ")))?;
        }
        let cgroup = self.cgroup.as_deref().unwrap_or("not there (yet)");
        writeln!(f, "pods' cgroup {}\n", printable(cgroup))?;
        let links = self
            .attached
            .iter()
            .map(|one| [one.link.to_string(), one.program.clone(), one.target.clone()]);
        writeln!(f, "{}", columns(&["LINK", "PROGRAM", "ATTACHED TO"], links))?;
        writeln!(
            f,
            "{} pods of this node are known; with a role, or asking for one: {}",
            self.pods_known,
            self.pods.len()
        )?;
        if !self.pods.is_empty() {
            let pods = self.pods_by_trouble();
            write!(
                f,
                "\n{}",
                columns(&PodLine::HEAD, pods.into_iter().map(PodLine::cells))
            )?;
        }
        writeln!(f)?;
        if !self.refused.is_empty() {
            let refused = self.refused.iter().map(RefusedLine::cells);
            writeln!(f, "{}", columns(&RefusedLine::HEAD, refused))?;
        }
        // Counters that are zero are left out. --output json has all of them.
        let counters = self
            .counters
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| [name.clone(), count.to_string()]);
        write!(f, "{}", columns(&["COUNTED SINCE THE START", ""], counters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_in_values_are_escaped() {
        let said = || "a\x1b[2J\nmetaproxy: ready\u{9b}".to_owned();
        let status = Status {
            version: said(),
            mode: said(),
            node: Some(said()),
            parts: vec![PartLine {
                part: said(),
                condition: said(),
                detail: Some(said()),
            }],
            listeners: vec![said()],
            cgroup: Some(said()),
            attached: vec![AttachedLine {
                link: 1,
                program: said(),
                target: said(),
            }],
            pods: vec![PodLine {
                pod: said(),
                verdict: said(),
                role: Some(said()),
                session_ends: None,
                seconds_left: None,
                last_error: Some(said()),
            }],
            refused: vec![RefusedLine {
                pod: Some(said()),
                kind: said(),
                connections: 1,
                explanation: said(),
            }],
            counters: [(said(), 1)].into(),
            ..Status::default()
        };
        let text = status.to_string();
        let obeyed = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(obeyed), "{text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("metaproxy: ready")),
            "{text}"
        );
        assert!(text.contains("a\\u{1b}[2J\\nmetaproxy: ready\\u{9b}"), "{text}");
    }
}
