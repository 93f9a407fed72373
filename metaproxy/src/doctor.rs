//! `metaproxy doctor`: looks at everything that serving pods takes, by trying it where that is possible, and says what to do
//! about what it finds.

mod bpf_conflicts;
mod cluster;
mod guard;
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
pub(crate) use self::leftovers::ON_THE_NODE;
pub use self::leftovers::{Found, Leftover, Used};
use crate::apiserver::KubeconfigSource;
use crate::credentials::sts::StsSettings;
use crate::imds::upstream::Endpoint;
use crate::roles::RoleArn;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Pods are served, but somebody should look at it.
    Warning,
    /// Pods are not served, or not kept from the node's credentials.
    Problem,
}

/// What one check has found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Which check.
    pub check: &'static str,
    /// How bad it is.
    pub level: Level,
    /// One sentence.
    pub says: String,
    /// What to do about it.
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

/// What is looked at.
#[derive(Debug)]
pub struct Examination {
    /// The pods' cgroup, where it is not to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, likewise.
    pub cgroup_root: Option<PathBuf>,
    /// Where the listener is to be; port 0 for a free one.
    pub listen: std::net::SocketAddr,
    /// Where health and metrics are to be answered.
    pub admin: Option<std::net::SocketAddr>,
    /// The API server, where there is one.
    pub kubeconfig: Option<KubeconfigSource>,
    /// The node's name in the cluster, if it is given.
    pub node: Option<String>,
    /// Whether namespaces are asked for their policy.
    pub namespaces: bool,
    /// Whether pods' roles by service accounts are asked for.
    pub web_identity: bool,
    /// Whether the agent asks for tokens only while a policy limits their audience.
    pub token_policy_required: bool,
    /// Whether a taint is to be removed from the node.
    pub startup_taint: bool,
    /// The node's metadata service.
    pub imds: Endpoint,
    /// How STS is asked.
    pub sts: StsSettings,
    /// A role to assume, to see whether that is possible.
    pub role: Option<RoleArn>,
    /// Directory of the sockets of agents and guards.
    pub runtime_dir: PathBuf,
    /// Where a guard is to run, if that is known.
    pub guard_placement: Option<GuardPlacement>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

impl Report {
    /// The worst of it.
    pub fn worst(&self) -> Level {
        self.findings
            .iter()
            .map(|finding| finding.level)
            .max()
            .unwrap_or(Level::Ok)
    }

    /// 0 where everything is as it should be, 1 with warnings, 2 with problems.
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

/// `1 problem`, `2 problems`
fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// Looks at everything. Nothing is changed; what is attached to try it is gone again at once.
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

/// What others have left on this node, and what removes it.
pub fn leftovers() -> Found {
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
