//! Decides about pods. Each decision is made once and kept until the inventory or the rules change, so a pod's next
//! request costs one lookup.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::credentials::{SessionHandle, SessionKey};
use crate::identify::Client;
use crate::pods::{Inventory, PodUid, Pods};
use crate::roles::{Decision, Grant, Rules};

/// The decision about one pod.
pub type PodDecision = Decision<Box<GrantedSession>>;

/// A grant, with the session that it leads to.
#[derive(Debug)]
pub struct GrantedSession {
    /// The role, and how its credentials are obtained.
    pub grant: Grant,
    /// The session that the grant asks for.
    pub key: SessionKey,
    /// Where the session cache holds that session.
    pub handle: SessionHandle,
}

impl From<Grant> for GrantedSession {
    fn from(grant: Grant) -> Self {
        Self {
            key: SessionKey::of_grant(&grant),
            grant,
            handle: SessionHandle::default(),
        }
    }
}

/// Decides about pods and keeps the decisions.
#[derive(Debug)]
pub struct Decisions {
    pods: Pods,
    rules: watch::Receiver<Arc<Rules>>,
    table: RwLock<Arc<Table>>,
}

/// The decisions that were made with one inventory and one set of rules.
#[derive(Debug)]
struct Table {
    inventory: Arc<Inventory>,
    rules: Arc<Rules>,
    decided: RwLock<HashMap<PodUid, Arc<PodDecision>>>,
}

impl PodDecision {
    /// Returns the session that a grant asks for; `None` for anything else.
    pub fn key(&self) -> Option<&SessionKey> {
        match self {
            Self::Granted(granted) => Some(&granted.key),
            _ => None,
        }
    }

    /// Returns whether this text names the pod's role: its name, its path and name, or its ARN, which is how kube2iam
    /// listed roles that are annotated by ARN.
    pub fn is_called(&self, wanted: &str) -> bool {
        match self {
            Self::Granted(granted) => granted.grant.role.is_called(wanted),
            Self::Refused { name, .. } => wanted.rsplit('/').next() == Some(name),
            Self::NoRole(_) | Self::Wait(_) => false,
        }
    }
}

impl Decisions {
    /// Makes a `Decisions` that decides from these pods and these rules.
    pub fn new(pods: Pods, rules: watch::Receiver<Arc<Rules>>) -> Self {
        let table = Table::new(pods.borrow().clone(), rules.borrow().clone());
        Self {
            pods,
            rules,
            table: RwLock::new(table),
        }
    }

    /// Returns the current decision about the client.
    pub fn of(&self, client: &Client) -> Arc<PodDecision> {
        self.table().find(&client.uid)
    }

    /// Waits until there is a decision about the client, and returns it. Returns [`Decision::Wait`] if there is none
    /// at the deadline.
    pub async fn once_known(&self, client: &Client, deadline: Instant) -> Arc<PodDecision> {
        let decided = self.of(client);
        if !matches!(*decided, Decision::Wait(_)) {
            return decided;
        }
        Box::pin(self.held(client, deadline)).await
    }

    async fn held(&self, client: &Client, deadline: Instant) -> Arc<PodDecision> {
        let (mut pods, mut rules) = (self.pods.clone(), self.rules.clone());
        let late = tokio::time::sleep_until(deadline);
        tokio::pin!(late);
        loop {
            pods.mark_unchanged();
            rules.mark_unchanged();
            let decided = self.of(client);
            if !matches!(*decided, Decision::Wait(_)) {
                return decided;
            }
            let changed = tokio::select! {
                changed = pods.changed() => changed,
                changed = rules.changed() => changed,
                () = &mut late => return decided,
            };
            if changed.is_err() {
                return decided;
            }
        }
    }

    /// Returns the table of the present inventory and rules.
    fn table(&self) -> Arc<Table> {
        let table = Arc::clone(&self.table.read().unwrap_or_else(PoisonError::into_inner));
        let (inventory, rules) = (self.pods.borrow(), self.rules.borrow());
        if Arc::ptr_eq(&table.inventory, &inventory) && Arc::ptr_eq(&table.rules, &rules) {
            return table;
        }
        let (inventory, rules) = (Arc::clone(&inventory), Arc::clone(&rules));
        let new = Table::new(inventory, rules);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&new);
        new
    }
}

impl Table {
    fn new(inventory: Arc<Inventory>, rules: Arc<Rules>) -> Arc<Self> {
        Arc::new(Self {
            inventory,
            rules,
            decided: RwLock::default(),
        })
    }

    fn find(&self, uid: &PodUid) -> Arc<PodDecision> {
        let known = self.decided.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(uid) {
            return Arc::clone(found);
        }
        drop(known);
        let decided = Arc::new(
            self.rules
                .resolve(&self.inventory, uid)
                .map_grant(|grant| Box::new(grant.into())),
        );
        // Decisions about unknown pods are not kept: the number of such pods has no limit, and deciding about them
        // costs little.
        if self.inventory.by_uid(uid).is_some() {
            let mut known = self.decided.write().unwrap_or_else(PoisonError::into_inner);
            known.insert(uid.clone(), Arc::clone(&decided));
        }
        decided
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::pods::Pod;
    use crate::roles::unasked as rules;

    const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

    pub(in crate::imds) fn inventory(role: &str) -> Arc<Inventory> {
        let pod = serde_json::json!({
            "metadata": {
                "name": "web", "namespace": "apps", "uid": UID,
                "annotations": { "iam.amazonaws.com/role": role },
            },
            "status": { "podIPs": [{ "ip": "10.244.0.5" }] },
        });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        Arc::new(Inventory::new([Arc::new(pod)], [], []))
    }

    pub(in crate::imds) fn client(uid: &str) -> Client {
        Client {
            uid: uid.parse().unwrap(),
        }
    }

    pub(in crate::imds) fn role(decided: &PodDecision) -> Option<&str> {
        decided.key().map(|key| key.role.name())
    }

    pub(in crate::imds) fn decisions(
        first: &str,
    ) -> (
        watch::Sender<Arc<Inventory>>,
        watch::Sender<Arc<Rules>>,
        Decisions,
    ) {
        let (publish, pods) = watch::channel(inventory(first));
        let (publish_rules, rules) = watch::channel(Arc::new(rules()));
        (publish, publish_rules, Decisions::new(pods, rules))
    }

    #[test]
    fn decisions_are_void_after_a_change_of_pods_or_rules() {
        let (pods, rules, decisions) = decisions("one");
        let client = client(UID);
        let one = decisions.of(&client);
        assert_eq!(role(&one), Some("one"));
        assert!(Arc::ptr_eq(&one, &decisions.of(&client)), "worked out once");
        pods.send_replace(inventory("other"));
        assert_eq!(role(&decisions.of(&client)), Some("other"));
        pods.send_replace(Arc::default());
        assert!(matches!(*decisions.of(&client), Decision::Wait(_)));
        pods.send_replace(inventory("other"));
        assert_eq!(role(&decisions.of(&client)), Some("other"));
        rules.send_modify(|rules| Arc::make_mut(rules).firewall = true);
        assert!(matches!(*decisions.of(&client), Decision::NoRole(_)));
    }

    #[test]
    fn pods_that_are_not_known_take_no_memory() {
        let (_pods, _rules, decisions) = decisions("one");
        for number in 0..100 {
            let uid = format!("bbbbbbbb-0000-0000-0000-{number:012}");
            assert!(matches!(*decisions.of(&client(&uid)), Decision::Wait(_)));
        }
        assert!(decisions.table().decided.read().unwrap().is_empty());
    }
}
