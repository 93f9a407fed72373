//! Reconciles the sessions, the entries of the kernel's maps and the reports of refusals with the pods.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

use super::role_log::{RoleLog, RoleState};
use crate::credentials::{Issuer, SessionKey, Sessions};
use crate::imds::RefusalReporter;
use crate::intercept::pod_maps::ListedPods;
use crate::pods::{Inventory, Known, Pod, PodUid, Pods};
use crate::roles::{Decision, Reason, Rules};

/// The reconciler. At each change it computes the desired state, and updates the sessions, the kernel's maps and the
/// reports to match it.
pub(super) struct Reconciler<I> {
    pub pods: Pods,
    pub rules: watch::Receiver<Arc<Rules>>,
    /// The pods that the kernel's maps list.
    pub listed: watch::Sender<ListedPods>,
    /// The sessions and the reporter of refusals. `None` while pods are only observed.
    pub service: Option<(Sessions<I>, Arc<RefusalReporter>)>,
}

impl<I: Issuer> Reconciler<I> {
    /// Reconciles at each change of the pods or the rules. Ends only if the senders of both channels are dropped.
    pub async fn run(mut self) {
        let mut requested = HashSet::new();
        let mut log = RoleLog::default();
        loop {
            let inventory = Arc::clone(&self.pods.borrow_and_update());
            let rules = Arc::clone(&self.rules.borrow_and_update());
            let before = self.listed.borrow().in_node_netns.clone();
            let desired = desired_state(&inventory, &rules, &before);
            self.listed.send_if_modified(|listed| {
                std::mem::replace(listed, desired.listed.clone()) != desired.listed
            });
            if let Some((sessions, reporter)) = &self.service {
                sessions.retain(&desired.keys);
                for (pod, key) in desired.ahead.difference(&requested) {
                    sessions.prefetch(pod, key);
                }
                // While the node's own roles are not known, every role waits. This does not count as a change of a
                // pod's role.
                if !rules.own.holds_decisions() {
                    for uid in log.record(desired.states, &inventory, &rules) {
                        reporter.forget(&uid);
                    }
                }
                for (uid, reason) in &desired.refused {
                    reporter.report(uid, reason);
                }
                requested = desired.ahead;
            }
            let changed = tokio::select! {
                changed = self.pods.changed() => changed,
                changed = self.rules.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }
}

/// The desired state, computed from the pods and the rules.
#[derive(Debug, Default)]
pub(super) struct DesiredState {
    /// The sessions of all granted roles.
    keys: HashSet<SessionKey>,
    /// The sessions to fetch before a pod requests them, each with a running pod that has the role.
    ahead: HashSet<(PodUid, SessionKey)>,
    /// The pods that the kernel's maps have to list.
    pub listed: ListedPods,
    /// The pods whose role is refused.
    refused: Vec<(PodUid, Reason)>,
    /// The state of each running pod's role.
    states: HashMap<PodUid, RoleState>,
}

/// Computes the desired state. `listed` are the pods that the kernel's maps list now.
pub(super) fn desired_state(inventory: &Inventory, rules: &Rules, listed: &BTreeSet<PodUid>) -> DesiredState {
    let mut found = DesiredState::default();
    found.listed.families = inventory.other_families();
    for (uid, known) in inventory.pods() {
        let claimants = match known {
            Known::Pod(pod) => std::slice::from_ref(pod),
            Known::Ambiguous(pods) => pods.as_slice(),
        };
        // If the service account of a pod is deleted, the pod must not get the node's role.
        let was_listed = listed.contains(uid);
        let asks = |pod: &Arc<Pod>| {
            let account = inventory.service_account(pod);
            rules.intercepts_host_pod(pod, account)
                || (was_listed && account.is_none() && rules.asks_accounts_of(pod))
        };
        // The pod's own UID is compared, because it is in the name of its cgroup and cannot be forged.
        let has_own_network = claimants
            .iter()
            .any(|pod| pod.uid == *uid && !pod.host_network && !pod.finished);
        if has_own_network || claimants.iter().any(asks) {
            found.listed.in_node_netns.insert(uid.clone());
        }
        let runs = claimants.iter().any(|pod| !pod.finished);
        let decision = rules.resolve(inventory, uid);
        // The inventory lists a static pod under its hash as well.
        if runs && claimants.iter().any(|pod| pod.uid == *uid) {
            found.states.insert(uid.clone(), RoleState::of(&decision));
        }
        match decision {
            Decision::Granted(grant) => {
                let key = SessionKey::of_grant(&grant);
                if runs {
                    found.ahead.insert((grant.subject.uid.clone(), key.clone()));
                }
                found.keys.insert(key);
            }
            Decision::Refused { reason, .. } if runs => found.refused.push((uid.clone(), reason)),
            Decision::Refused { .. } | Decision::NoRole(_) | Decision::Wait(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::ServiceAccount;
    use crate::roles::OwnRoles;
    use serde_json::{Value, json};

    fn pod(uid: &str, spec: Value, phase: &str) -> Arc<Pod> {
        let object = json!({
            "metadata": { "name": uid, "namespace": "apps", "uid": uid, "annotations": {} },
            "spec": spec,
            "status": { "phase": phase },
        });
        Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
    }

    fn account() -> Arc<ServiceAccount> {
        let role = "arn:aws:iam::123456789012:role/of-account".to_owned();
        Arc::new(ServiceAccount {
            namespace: "apps".to_owned(),
            name: "web".to_owned(),
            annotations: [("eks.amazonaws.com/role-arn".to_owned(), role)].into(),
        })
    }

    fn rules() -> Rules {
        let words = ["metaproxy", "run", "--kubeconfig", "/k", "--node-name", "n"];
        let more = ["--web-identity", "on", "--namespace-policy", "off"];
        let cli = crate::cli::Cli::from_words(words.iter().chain(&more)).unwrap();
        match cli.command {
            crate::cli::Command::Run(args) => Rules {
                own: OwnRoles::default(),
                ..args.settings().unwrap().rules
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_listed_hostnetwork_pod_stays_listed_while_its_service_account_is_missing() {
        let spec = json!({ "hostNetwork": true, "serviceAccountName": "web", "containers": [] });
        let pods = || [pod("host", spec.clone(), "Running")];
        let with = Inventory::new(pods(), [], [account()]);
        let without = Inventory::new(pods(), [], []);
        let none_listed = BTreeSet::new();
        assert!(
            desired_state(&without, &rules(), &none_listed)
                .listed
                .in_node_netns
                .is_empty()
        );
        let listed = desired_state(&with, &rules(), &none_listed).listed.in_node_netns;
        assert_eq!(listed.len(), 1);
        assert_eq!(
            desired_state(&without, &rules(), &listed).listed.in_node_netns,
            listed
        );
        let bare = Arc::new(ServiceAccount {
            annotations: Default::default(),
            ..ServiceAccount::clone(&account())
        });
        let known_without_a_role = Inventory::new(pods(), [], [bare]);
        assert!(
            desired_state(&known_without_a_role, &rules(), &listed)
                .listed
                .in_node_netns
                .is_empty()
        );
    }

    /// Such a pod can get a socket of the node's network namespace only from another pod. The decision about that
    /// other pod does not apply to it.
    #[test]
    fn a_pod_with_its_own_network_is_also_listed_for_the_nodes_network_namespace_while_it_runs() {
        let listed = |spec: Value, phase: &str| {
            let inventory = Inventory::new([pod("web", spec, phase)], [], []);
            desired_state(&inventory, &rules(), &BTreeSet::new())
                .listed
                .in_node_netns
                .len()
        };
        assert_eq!(listed(json!({ "containers": [] }), "Running"), 1);
        assert_eq!(listed(json!({ "containers": [] }), "Pending"), 1);
        assert_eq!(listed(json!({ "containers": [] }), "Succeeded"), 0);
        assert_eq!(
            listed(json!({ "hostNetwork": true, "containers": [] }), "Running"),
            0
        );
    }

    /// A static hostNetwork pod is found by its hash. The annotations of a forged mirror pod do not apply to it.
    #[test]
    fn a_static_pod_is_intercepted_according_to_its_genuine_mirror_pod() {
        const HASH: &str = "0123456789abcdef0123456789abcdef";
        const ARN: &str = "arn:aws:iam::123456789012:role/app";
        let mirror = |name: &str, role: Option<&str>, is_genuine: bool| {
            let object = json!({
                "metadata": {
                    "name": name, "namespace": "apps", "uid": name,
                    "annotations": {
                        "kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH,
                        "iam.amazonaws.com/role": role.unwrap_or_default(),
                    },
                    "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": "n1", "controller": true }],
                },
                "spec": { "nodeName": "n1", "hostNetwork": true, "containers": [] },
                "status": { "startTime": is_genuine.then_some("2026-01-01T00:00:00Z") },
            });
            Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
        };
        let listed = |pods: Vec<Arc<Pod>>| {
            let uid: PodUid = HASH.parse().unwrap();
            let found = desired_state(&Inventory::new(pods, [], []), &rules(), &BTreeSet::new());
            (found.listed.in_node_netns.contains(&uid), found.keys.len())
        };
        let forged = || mirror("forged", Some(ARN), false);
        let without = || mirror("static", None, true);
        let with = || mirror("static", Some(ARN), true);
        assert_eq!(listed(vec![without(), forged()]), (false, 0));
        assert_eq!(listed(vec![forged(), with()]), (true, 1));
        assert_eq!(listed(vec![with(), mirror("forged", None, false)]), (true, 1));
        assert_eq!(listed(vec![forged()]), (false, 0));
    }

    #[test]
    fn the_session_of_a_finished_pod_is_kept_but_not_fetched_ahead() {
        let spec = json!({ "serviceAccountName": "web", "containers": [] });
        let pods = [
            pod("runs", spec.clone(), "Running"),
            pod("done", spec, "Succeeded"),
        ];
        let found = desired_state(&Inventory::new(pods, [], [account()]), &rules(), &BTreeSet::new());
        assert_eq!((found.keys.len(), found.ahead.len()), (2, 1));
    }
}
