//! Makes the lines of a status.

use std::collections::BTreeMap;

use metaproxy_common::layout::{Counter, GuardCounter};

use super::MetricSource;
use super::status::{PartLine, PodLine, RefusedLine};
use crate::explain::{Explanation, Verdict};
use crate::identify::refusals::RefusalCount;
use crate::intercept::own_links::LinkTarget;
use crate::telemetry::health::{Condition, Part};

/// Describes a pod that has a role, or requests one.
pub(super) fn pod(one: Explanation) -> PodLine {
    let credentials = one.credentials.as_ref();
    let said = credentials.and_then(|line| line.last_error.clone());
    PodLine {
        last_error: said.or_else(|| (one.verdict != Verdict::Granted).then(|| one.because.clone())),
        session_ends: credentials.and_then(|line| line.expires.clone()),
        seconds_left: credentials.and_then(|line| line.seconds_left),
        verdict: one.verdict.label().to_owned(),
        pod: one.pod,
        role: one.role,
    }
}

/// Describes a part of the agent.
pub(super) fn part((part, condition): (Part, Condition)) -> PartLine {
    let (condition, detail) = match condition {
        Condition::Fine => ("ok", None),
        Condition::Degraded(detail) => ("degraded", Some(detail)),
        Condition::Failing(detail) => ("failed", Some(detail)),
    };
    PartLine {
        part: part.label().to_owned(),
        condition: condition.to_owned(),
        detail,
    }
}

/// Describes what a program is attached to.
pub(super) fn target(target: LinkTarget, cgroup: Option<&str>) -> String {
    match target {
        LinkTarget::Cgroup(0) | LinkTarget::Interface(0) => "nothing any more".to_owned(),
        LinkTarget::Cgroup(id) => match cgroup {
            Some(path) if inode(path) == Some(id) => path.to_owned(),
            _ => format!("cgroup {id}"),
        },
        LinkTarget::Interface(index) => nix::net::if_::if_indextoname(index).map_or_else(
            |_| format!("interface {index}"),
            |name| format!("egress of {}", name.to_string_lossy()),
        ),
    }
}

/// Returns the inode of a cgroup's directory, which is the cgroup's id.
fn inode(path: &str) -> Option<u64> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|dir| dir.ino())
}

/// Describes refused connections of one kind and one pod.
pub(super) fn refused(one: RefusalCount) -> RefusedLine {
    let (namespace, pod) = one.pod;
    RefusedLine {
        pod: (!pod.is_empty()).then(|| format!("{namespace}/{pod}")),
        kind: one.kind.label().to_owned(),
        connections: one.count,
        explanation: one.kind.explanation().to_owned(),
    }
}

/// Names the counters of connections in the agent and in the kernel.
pub(super) fn counters(metrics: &dyn MetricSource) -> BTreeMap<String, u64> {
    let counts = metrics.connections();
    let mut all: BTreeMap<String, u64> = [
        ("connections served", counts.served),
        (
            "connections closed, as their caller is not known",
            counts.unidentified,
        ),
        ("connections closed, as their pod has too many", counts.over_limit),
        ("guard: packets dropped", metrics.guard(GuardCounter::Packets)),
    ]
    .map(|(name, count)| (name.to_owned(), count))
    .into();
    all.extend(
        Counter::ALL
            .iter()
            .map(|counter| (format!("kernel: {}", counter.label()), metrics.kernel(*counter))),
    );
    all
}
