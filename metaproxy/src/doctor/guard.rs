//! Reports whether a separate guard runs on this node, and the state that each guard reports of itself.

use clap::ValueEnum;

use super::{Examination, Finding, kernel};
use crate::admin::GuardReport;
use crate::admin::client::{self, ClientError};
use crate::intercept::guard::GuardState;

const CHECK: &str = "guard process";

const LOG_ADVICE: &str =
    "its log says why (`kubectl logs` of the guard's pod, or `journalctl -u metaproxy-guard`)";

/// `--guard-placement`: where the chart has a guard (its value `guard.placement`)
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardPlacement {
    /// In pods of its own
    Daemonset,
    /// In the agent's pod
    Sidecar,
    /// There is none, or it is a systemd unit of the node
    None,
}

/// Makes a finding for each guard, or one that says that none runs.
pub(super) fn examine(examination: &Examination) -> Vec<Finding> {
    let guards = client::guards(&examination.runtime_dir);
    if guards.is_empty() {
        let agent_runs = client::status(&examination.runtime_dir).is_ok();
        return vec![missing(examination.guard_placement, agent_runs)];
    }
    let cgroup = kernel::pods_cgroup_id(examination);
    guards.iter().map(|guard| found(guard.as_ref(), cgroup)).collect()
}

/// Makes the finding if no guard has a socket in the runtime directory. A running agent keeps pods from the metadata
/// service even then.
fn missing(placement: Option<GuardPlacement>, agent_runs: bool) -> Finding {
    const OPEN: &str = "while no agent runs, pods reach the node's metadata service and its role";
    let (placement, advice) = match placement {
        Some(GuardPlacement::Daemonset) => (
            "daemonset",
            "`kubectl get pods --all-namespaces --selector app.kubernetes.io/component=guard --output wide` shows the guards' pods, and \
             `kubectl describe` of their DaemonSet why none is on this node; one with another --runtime-dir than this is not found",
        ),
        Some(GuardPlacement::Sidecar) => (
            "sidecar",
            "`kubectl describe` of the agent's pod shows what keeps its container `guard` from running; one with another --runtime-dir \
             than this is not found",
        ),
        Some(GuardPlacement::None) | None => {
            return Finding::ok(CHECK, format!("no guard of its own runs here: {OPEN}"));
        }
    };
    let says = format!(
        "no guard of its own runs here, and the chart is to have one on each node (guard.placement={placement}): {OPEN}"
    );
    if agent_runs {
        Finding::warning(CHECK, says, advice)
    } else {
        Finding::problem(CHECK, says, advice)
    }
}

fn found(guard: Result<&GuardReport, &ClientError>, pods: Option<u64>) -> Finding {
    let report = match guard {
        Ok(report) => report,
        Err(error) => {
            let says = format!("a guard runs here, and whether it keeps pods out is not known: {error}");
            return Finding::warning(
                CHECK,
                says,
                "run this as root; a guard that does not answer is to be restarted",
            );
        }
    };
    let (version, level) = (&report.version, &report.level);
    match report.state {
        GuardState::Closed { cgroup, .. } if pods.is_some_and(|pods| pods != cgroup) => Finding::problem(
            CHECK,
            format!(
                "a guard (metaproxy {version}) runs here and keeps out the pods of another cgroup (id {cgroup}) than that of this \
                 node's pods (id {})",
                pods.unwrap_or_default()
            ),
            "give guard and agent the same --cgroup and --cgroup-root, or neither",
        ),
        GuardState::Closed { reattached: 0, .. } => Finding::ok(
            CHECK,
            format!("a guard (metaproxy {version}) keeps pods out while no agent serves them: {level}"),
        ),
        GuardState::Closed { reattached, .. } => Finding::warning(
            CHECK,
            format!(
                "a guard (metaproxy {version}) keeps pods out, and another program has detached it {reattached} times lately; it was \
                 attached again"
            ),
            "see the users of our hooks above: software that replaces programs there must leave others' alone",
        ),
        GuardState::Waiting => Finding::problem(
            CHECK,
            format!(
                "a guard (metaproxy {version}) runs here and is not attached, so that it keeps no pod out"
            ),
            format!("the pods' cgroup is not there, or cannot be attached to: {LOG_ADVICE}"),
        ),
        GuardState::Open => Finding::ok(
            CHECK,
            format!(
                "a guard (metaproxy {version}) runs here and is open: it keeps pods out once an agent has served them since the node \
                 booted"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use rstest::rstest;

    fn report(state: GuardState) -> GuardReport {
        GuardReport {
            version: "9.9.9".to_owned(),
            level: "packets are dropped".to_owned(),
            state,
        }
    }

    #[rstest]
    #[case::closed(GuardState::Closed { reattached: 0, cgroup: 7 }, Some(7), Level::Ok, "keeps pods out while no agent serves them: packets")]
    #[case::no_pods_here(GuardState::Closed { reattached: 0, cgroup: 7 }, None, Level::Ok, "keeps pods out while")]
    #[case::elsewhere(GuardState::Closed { reattached: 0, cgroup: 7 }, Some(8), Level::Problem, "another cgroup (id 7) than that of this node's pods (id 8)")]
    #[case::detached(GuardState::Closed { reattached: 3, cgroup: 7 }, Some(7), Level::Warning, "detached it 3 times")]
    #[case::waiting(GuardState::Waiting, Some(7), Level::Problem, "is not attached")]
    #[case::open(GuardState::Open, Some(7), Level::Ok, "is open")]
    fn a_guard_that_should_keep_pods_out_and_does_not_is_a_problem(
        #[case] state: GuardState,
        #[case] pods: Option<u64>,
        #[case] level: Level,
        #[case] says: &str,
    ) {
        let finding = found(Ok(&report(state)), pods);
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(
            finding.says.contains(says) && finding.says.contains("9.9.9"),
            "{finding:?}"
        );
    }

    #[rstest]
    #[case::not_known(None, true, Level::Ok)]
    #[case::not_wanted(Some(GuardPlacement::None), false, Level::Ok)]
    #[case::beside_an_agent(Some(GuardPlacement::Daemonset), true, Level::Warning)]
    #[case::and_no_agent(Some(GuardPlacement::Daemonset), false, Level::Problem)]
    #[case::in_the_agents_pod(Some(GuardPlacement::Sidecar), false, Level::Problem)]
    fn a_guard_that_is_missing_is_a_fault_if_the_chart_has_one(
        #[case] placement: Option<GuardPlacement>,
        #[case] agent_runs: bool,
        #[case] level: Level,
    ) {
        let finding = missing(placement, agent_runs);
        assert_eq!(finding.level, level, "{finding:?}");
        assert!(
            finding.says.contains("pods reach the node's metadata service"),
            "{finding:?}"
        );
    }

    #[test]
    fn a_guard_that_does_not_answer_is_a_warning() {
        let error = ClientError::NotAllowed("/run/metaproxy/guard-1-1.sock".into());
        let finding = found(Err(&error), Some(7));
        assert_eq!(finding.level, Level::Warning);
        assert!(
            finding
                .says
                .contains("is not known: /run/metaproxy/guard-1-1.sock"),
            "{finding:?}"
        );
    }
}
