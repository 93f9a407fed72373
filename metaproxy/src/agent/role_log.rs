//! Logs how many pods have a role when the agent starts, and each change after that. Refusals are logged by the refusal
//! reporter.

use std::collections::HashMap;

use tracing::info;

use crate::pods::{Inventory, Known, PodUid};
use crate::roles::{Decision, RoleArn, Rules};
use crate::telemetry::log_limiter::LogLimiter;

/// The maximum number of simultaneous changes that are logged one by one. If there are more, only their number is
/// logged.
const MAX_LINES: usize = 10;

/// The state of a pod's role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RoleState {
    /// The pod has this role.
    Role(RoleArn),
    /// The pod requests a role, and is refused.
    Refused,
    /// The pod requests no role.
    NoRole,
    /// The decision waits for information that is not known yet.
    Unknown,
}

/// The last logged state of each pod's role.
#[derive(Debug)]
pub(super) struct RoleLog {
    last: HashMap<PodUid, RoleState>,
    is_new: bool,
    lines: LogLimiter,
}

impl Default for RoleLog {
    fn default() -> Self {
        Self {
            last: HashMap::new(),
            is_new: true,
            lines: LogLimiter::new(|more| {
                info!("and {more} more pods whose role is new; `metaproxy status` has them");
            }),
        }
    }
}

impl RoleState {
    pub fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Granted(grant) => Self::Role(grant.role.clone()),
            Decision::Refused { .. } => Self::Refused,
            Decision::NoRole(_) => Self::NoRole,
            Decision::Wait(_) => Self::Unknown,
        }
    }
}

impl RoleLog {
    /// Logs the changes, and returns the pods whose state has changed.
    pub fn record(
        &mut self,
        mut now: HashMap<PodUid, RoleState>,
        inventory: &Inventory,
        rules: &Rules,
    ) -> Vec<PodUid> {
        // A decision that waits does not count as a change.
        for (uid, state) in &mut now {
            if let (RoleState::Unknown, Some(last)) = (&*state, self.last.get(uid)) {
                *state = last.clone();
            }
        }
        let before = std::mem::replace(&mut self.last, now);
        let changed: Vec<(&PodUid, Option<&RoleState>)> = self
            .last
            .iter()
            .map(|(uid, state)| (uid, state, before.get(uid)))
            .filter(|(_, state, before)| *before != Some(state))
            .map(|(uid, _, before)| (uid, before))
            .collect();
        let is_first = std::mem::take(&mut self.is_new);
        if is_first || changed.len() > MAX_LINES {
            self.sum_up(changed.len(), is_first);
        } else {
            for (uid, before) in &changed {
                if let Some(change) = change(inventory, rules, uid, *before)
                    && self.lines.may_log()
                {
                    info!("{change}");
                }
            }
        }
        let known_before = changed.iter().filter(|(_, before)| before.is_some());
        known_before.map(|(uid, _)| (*uid).clone()).collect()
    }

    fn sum_up(&self, changed: usize, is_first: bool) {
        let count = |wanted: fn(&RoleState) -> bool| self.last.values().filter(|one| wanted(one)).count();
        info!(
            pods = self.last.len(),
            with_role = count(|one| matches!(one, RoleState::Role(_))),
            refused = count(|one| *one == RoleState::Refused),
            without = count(|one| *one == RoleState::NoRole),
            unknown = count(|one| *one == RoleState::Unknown),
            "pods of this node{}; `metaproxy explain --all` has each",
            if is_first {
                String::new()
            } else {
                format!(": {changed} are new, or have another role")
            }
        );
    }
}

/// Describes the change of one pod's role. Returns `None` if another part logs the change, or if it needs no line.
fn change(inventory: &Inventory, rules: &Rules, uid: &PodUid, before: Option<&RoleState>) -> Option<String> {
    let Known::Pod(pod) = inventory.by_uid(uid)? else {
        return None;
    };
    Some(match (rules.resolve(inventory, uid), before) {
        (Decision::Granted(grant), Some(RoleState::Role(last))) => {
            format!("pod {pod} has another role, no longer {last}: {}", grant.reason)
        }
        (Decision::Granted(grant), Some(RoleState::Refused)) => {
            format!("pod {pod} is refused no longer: {}", grant.reason)
        }
        (Decision::Granted(grant), _) => format!("pod {pod} has a role: {}", grant.reason),
        (Decision::NoRole(reason), Some(RoleState::Role(last))) => {
            format!("pod {pod} no longer has role {last}: {reason}")
        }
        (Decision::NoRole(reason), Some(RoleState::Refused)) => {
            format!("pod {pod} is refused no longer: {reason}")
        }
        (Decision::Refused { .. } | Decision::NoRole(_) | Decision::Wait(_), _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pod;
    use crate::roles::unasked as rules;
    use std::sync::Arc;

    fn inventory(role: &str) -> Inventory {
        let pod = serde_json::json!({
            "metadata": {
                "name": "web", "namespace": "apps", "uid": "u",
                "annotations": { "iam.amazonaws.com/role": role },
            },
        });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        Inventory::new([Arc::new(pod)], [], [])
    }

    fn said(before: Option<&str>, now: &str) -> Option<String> {
        let uid: PodUid = "u".parse().unwrap();
        let state = |role: &str| RoleState::of(&rules().resolve(&inventory(role), &uid));
        let before = before.map(state);
        change(&inventory(now), &rules(), &uid, before.as_ref())
    }

    #[test]
    fn a_change_is_described_with_the_previous_state() {
        let one = "role arn:aws:iam::123456789012:role/one";
        let whence = "from annotation iam.amazonaws.com/role of the pod";
        let starts = |said: Option<String>, start: &str| {
            let said = said.unwrap();
            assert!(said.starts_with(start), "{said}");
        };
        starts(
            said(None, "one"),
            &format!("pod apps/web has a role: {one} {whence}"),
        );
        starts(
            said(Some("two"), "one"),
            &format!(
                "pod apps/web has another role, no longer arn:aws:iam::123456789012:role/two: {one} {whence}"
            ),
        );
        starts(
            said(Some("a b"), "one"),
            &format!("pod apps/web is refused no longer: {one}"),
        );
        starts(
            said(Some("one"), ""),
            "pod apps/web no longer has role arn:aws:iam::123456789012:role/one: pod apps/web has no role",
        );
        assert_eq!(said(None, "a b"), None, "a refusal is told elsewhere");
        assert_eq!(said(None, ""), None, "that is told when it asks");
    }

    #[test]
    fn an_unknown_state_does_not_count_as_a_change() {
        let uid: PodUid = "u".parse().unwrap();
        let now = |state: RoleState| HashMap::from([(uid.clone(), state)]);
        let role = || RoleState::Role("arn:aws:iam::123456789012:role/one".parse().unwrap());
        let mut log = RoleLog::default();
        let mut changed = |state| log.record(now(state), &inventory("one"), &rules());
        assert_eq!(changed(role()), []);
        assert_eq!(changed(RoleState::Unknown), []);
        assert_eq!(changed(role()), []);
        assert_eq!(changed(RoleState::Refused), std::slice::from_ref(&uid));
    }
}
