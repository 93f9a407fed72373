//! Reports whether the agent of this node has found its pods below the cgroup where they are intercepted.

use std::path::Path;

use super::Finding;
use crate::admin::client;
use crate::explain::Verdict;
use crate::introspection::Status;

/// The maximum number of pods that a finding names.
const MAX_NAMED: usize = 5;

pub(super) fn examine(runtime_dir: &Path) -> Option<Finding> {
    finding(&client::status(runtime_dir).ok()?)
}

/// Makes the finding. There is none if the agent has no pods' cgroup or knows no pod.
fn finding(status: &Status) -> Option<Finding> {
    const CHECK: &str = "pods' place";
    let cgroup = status.cgroup.as_deref()?;
    let known = status.pods_known;
    let mut outside: Vec<&str> = status
        .pods
        .iter()
        .filter(|pod| pod.verdict == Verdict::NotIntercepted.label())
        .map(|pod| pod.pod.as_str())
        .collect();
    if known == 0 {
        return None;
    }
    if outside.is_empty() {
        return Some(Finding::ok(
            CHECK,
            format!("the agent finds no pod of this node elsewhere than below {cgroup}"),
        ));
    }
    let count = outside.len();
    outside.truncate(MAX_NAMED);
    let more = if count > outside.len() { ", …" } else { "" };
    Some(Finding::problem(
        CHECK,
        format!(
            "{count} of {known} pods of this node are not below {cgroup}, so that they are not intercepted: {}{more}",
            outside.join(", ")
        ),
        format!(
            "give --cgroup the cgroup of all pods (without the flag it is found), and kubelet and container runtime the same cgroup \
             driver; `metaproxy explain {}` shows where its processes are",
            outside.first().copied().unwrap_or_default()
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::introspection::status::PodLine;
    use rstest::rstest;

    #[rstest]
    #[case::in_place(&["granted", "refused"], 3, Some(Level::Ok), "below /c/kubepods")]
    #[case::some_outside(&["granted", "not intercepted"], 3, Some(Level::Problem), "1 of 3 pods of this node are not below /c/kubepods")]
    #[case::no_pod_known(&[], 0, None, "")]
    fn pods_outside_of_the_cgroup_are_a_problem(
        #[case] verdicts: &[&str],
        #[case] pods_known: usize,
        #[case] level: Option<Level>,
        #[case] says: &str,
    ) {
        let line = |verdict: &&str| PodLine {
            pod: format!("apps/{verdict}"),
            verdict: (*verdict).to_owned(),
            role: None,
            session_ends: None,
            seconds_left: None,
            last_error: None,
        };
        let found = finding(&Status {
            cgroup: Some("/c/kubepods".to_owned()),
            pods: verdicts.iter().map(line).collect(),
            pods_known,
            ..Status::default()
        });
        assert_eq!(found.as_ref().map(|found| found.level), level);
        assert!(found.is_none_or(|found| found.says.contains(says)));
    }
}
