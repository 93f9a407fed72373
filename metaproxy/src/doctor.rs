//! Examines everything that serving pods needs, by trying it if possible, and says what to do about each finding.

mod bpf_conflicts;
mod cluster;
mod guard;
mod hooks;
mod imds;
mod kernel;
mod leftovers;
mod node;
mod other_credentials;
mod placement;
mod processes;
mod refused;
mod sts;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

pub use self::guard::GuardPlacement;
pub(crate) use self::leftovers::RUN_ON_THE_NODE_ADVICE;
pub use self::leftovers::{Leftover, NodeLeftovers, Usage};
use crate::apiserver::KubeconfigSource;
use crate::credentials::sts::StsSettings;
use crate::imds::upstream::Endpoint;
use crate::roles::RoleArn;

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Everything is as it should be.
    Ok,
    /// Pods are served, but an operator should look at it.
    Warning,
    /// Pods are not served, or not kept from the node's credentials.
    Problem,
}

/// The finding of one check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The check's name.
    pub check: &'static str,
    /// The severity.
    pub level: Level,
    /// The finding, in one sentence.
    pub says: String,
    /// The advice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, says: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            says: says.into(),
            advice: None,
        }
    }

    fn warning(check: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Warning,
            advice: Some(advice.into()),
            ..Self::ok(check, says)
        }
    }

    fn problem(check: &'static str, says: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            level: Level::Problem,
            advice: Some(advice.into()),
            ..Self::ok(check, says)
        }
    }
}

/// The settings of an examination.
#[derive(Debug)]
pub struct Examination {
    /// The pods' cgroup; `None` if it is to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount; `None` if it is to be found.
    pub cgroup_root: Option<PathBuf>,
    /// The listener's address; port 0 stands for a free one.
    pub listen: std::net::SocketAddr,
    /// The address for health and metrics.
    pub admin: Option<std::net::SocketAddr>,
    /// The API server, if the agent uses one.
    pub kubeconfig: Option<KubeconfigSource>,
    /// The node's name in the cluster, if it is given.
    pub node: Option<String>,
    /// Whether the policies of namespaces count.
    pub namespaces: bool,
    /// Whether service accounts' roles count.
    pub web_identity: bool,
    /// Whether the agent asks for tokens only while a policy limits their audience.
    pub token_policy_required: bool,
    /// Whether a taint is to be removed from the node.
    pub startup_taint: bool,
    /// The node's metadata service.
    pub imds: Endpoint,
    /// The settings for STS.
    pub sts: StsSettings,
    /// A role that the node tries to assume.
    pub role: Option<RoleArn>,
    /// The directory with the sockets of agents and guards.
    pub runtime_dir: PathBuf,
    /// Where the chart puts a guard, if that is known.
    pub guard_placement: Option<GuardPlacement>,
}

/// The report of an examination.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Returns the worst severity.
    pub fn worst(&self) -> Level {
        self.findings
            .iter()
            .map(|finding| finding.level)
            .max()
            .unwrap_or(Level::Ok)
    }

    /// Returns the exit status: 0 without findings to act on, 1 with warnings, 2 with problems.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self.worst() {
            Level::Ok => 0,
            Level::Warning => 1,
            Level::Problem => 2,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "WARNING",
                Level::Problem => "PROBLEM",
            };
            let mut says = finding.says.lines();
            writeln!(
                f,
                "{level:<9}{:<14}{}",
                finding.check,
                says.next().unwrap_or_default()
            )?;
            for line in says {
                writeln!(f, "{:<23}{line}", "")?;
            }
            for line in finding.advice.iter().flat_map(|advice| advice.lines()) {
                writeln!(f, "{:<23}-> {line}", "")?;
            }
        }
        let count = |level, what| {
            let found = self.findings.iter().filter(|finding| finding.level == level);
            counted(found.count(), what)
        };
        writeln!(
            f,
            "\n{}: {}, {}",
            counted(self.findings.len(), "check"),
            count(Level::Problem, "problem"),
            count(Level::Warning, "warning")
        )
    }
}

/// Counts in words: `1 problem`, `2 problems`.
fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Runs all checks. They change nothing, and detach at once what they attach on trial.
pub async fn examine(examination: &Examination) -> Report {
    let mut findings = kernel::examine(examination);
    findings.extend(placement::examine(&examination.runtime_dir));
    findings.extend(guard::examine(examination));
    findings.extend(refused::examine(&examination.runtime_dir));
    findings.extend(processes::sandboxes());
    findings.extend(node::ports(examination));
    findings.push(node::proxy());
    findings.extend(node::syncookies());
    let (identity, sts) = sts::examine(examination).await;
    findings.extend(imds::examine(&examination.imds, identity.as_deref()).await);
    findings.extend(sts);
    findings.extend(sts::pods_roles(examination));
    findings.extend(other_credentials::examine(examination));
    findings.extend(cluster::examine(examination).await);
    findings.extend(leftovers::examine(&leftovers::find()));
    Report { findings }
}

/// Finds what other software has left on this node, and the commands that remove it.
pub fn find_leftovers() -> NodeLeftovers {
    leftovers::find()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_as_one_says_it() {
        let report = Report {
            findings: vec![
                Finding::ok("a", "fine"),
                Finding::problem("b", "not", "do this"),
                Finding::warning("c", "perhaps", "see"),
                Finding::warning("d", "perhaps", "see"),
            ],
        };
        let text = report.to_string();
        assert!(text.ends_with("\n4 checks: 1 problem, 2 warnings\n"), "{text}");
        let one = Report {
            findings: vec![Finding::ok("a", "fine")],
        };
        assert!(one.to_string().ends_with("\n1 check: 0 problems, 0 warnings\n"));
    }
}
