//! The condition of each part of the agent. `/readyz` and the probes report it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// A part of the agent whose condition affects readiness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The programs in the kernel.
    Interception,
    /// The listener that accepts pods' connections.
    Listener,
    /// The guard that keeps pods from reaching the metadata service past the agent.
    Guard,
    /// The list of this node's pods.
    Pods,
    /// The list of namespaces.
    Namespaces,
    /// The list of service accounts.
    ServiceAccounts,
    /// The agent's permissions in the cluster.
    Permissions,
    /// The node's startup taint.
    StartupTaint,
    /// The admin port, for probes and metrics.
    Admin,
}

impl Part {
    /// Returns the name of the part in reports and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Interception => "interception",
            Self::Listener => "listener",
            Self::Guard => "guard",
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
            Self::ServiceAccounts => "service-accounts",
            Self::Permissions => "permissions",
            Self::StartupTaint => "startup-taint",
            Self::Admin => "admin",
        }
    }
}

/// The condition of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The part works.
    Fine,
    /// The part has a problem, but pods are still served.
    Degraded(String),
    /// Pods are not served, or not all of them are.
    Failing(String),
}

impl Condition {
    /// Returns whether pods are served.
    pub fn serves(&self) -> bool {
        !matches!(self, Self::Failing(_))
    }
}

/// The conditions of all parts. Cheap to clone; each clone reports to and reads the same conditions.
#[derive(Clone, Debug)]
pub struct Health(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    now: watch::Sender<BTreeMap<Part, Condition>>,
    troubles: Mutex<BTreeMap<Part, u64>>,
}

impl Health {
    /// Makes the initial conditions of an agent. The agent is not ready before each of these parts has reported a
    /// condition.
    pub fn starting(parts: impl IntoIterator<Item = Part>) -> Self {
        let starting = |part| (part, Condition::Failing("starting".to_owned()));
        Self(Arc::new(Parts {
            now: watch::Sender::new(parts.into_iter().map(starting).collect()),
            troubles: Mutex::default(),
        }))
    }

    /// Sets the condition of a part.
    pub fn set(&self, part: Part, condition: Condition) {
        self.0.now.send_if_modified(|parts| {
            let before = parts.insert(part, condition.clone());
            if before == Some(Condition::Fine) && condition != Condition::Fine {
                let mut troubles = self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner);
                *troubles.entry(part).or_default() += 1;
            }
            before.as_ref() != Some(&condition)
        });
    }

    /// Returns whether pods are served.
    pub fn is_ready(&self) -> bool {
        serves(&self.0.now.borrow())
    }

    /// Waits until pods are served.
    pub async fn ready(&self) {
        // `self` holds the sender, so the channel stays open.
        let _ = self.0.now.subscribe().wait_for(serves).await;
    }

    /// Waits until pods are not served.
    pub async fn not_ready(&self) {
        let _ = self.0.now.subscribe().wait_for(|parts| !serves(parts)).await;
    }

    /// Waits until one of these parts changes from fine to another condition.
    pub async fn new_trouble(&self, parts: &[Part]) {
        let count = || parts.iter().map(|part| self.troubles(*part)).sum::<u64>();
        let before = count();
        let mut now = self.0.now.subscribe();
        while count() == before && now.changed().await.is_ok() {}
    }

    /// Waits until every one of these parts allows pods to be served.
    pub async fn part_serves(&self, wanted: &[Part]) {
        let all = |parts: &BTreeMap<Part, Condition>| {
            wanted
                .iter()
                .all(|part| parts.get(part).is_none_or(Condition::serves))
        };
        let _ = self.0.now.subscribe().wait_for(all).await;
    }

    /// Returns how often a part has changed from fine to another condition.
    pub fn troubles(&self, part: Part) -> u64 {
        let troubles = self.0.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.get(&part).copied().unwrap_or_default()
    }

    /// Returns the condition of each part.
    pub fn parts(&self) -> BTreeMap<Part, Condition> {
        self.0.now.borrow().clone()
    }
}

fn serves(parts: &BTreeMap<Part, Condition>) -> bool {
    parts.values().all(Condition::serves)
}

/// Writes one line for each part, in the form of the API server's own `/readyz?verbose`.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, condition) in self.parts() {
            let label = part.label();
            match condition {
                Condition::Fine => writeln!(f, "[+]{label} ok")?,
                Condition::Degraded(detail) => writeln!(f, "[!]{label} degraded: {detail}")?,
                Condition::Failing(detail) => writeln!(f, "[-]{label} failed: {detail}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_agent_is_ready_when_every_part_serves_and_its_report_lists_problems() {
        let health = Health::starting([Part::Interception, Part::Pods]);
        assert!(!health.is_ready());
        health.set(Part::Interception, Condition::Fine);
        assert!(!health.is_ready());
        health.set(Part::Pods, Condition::Degraded("an old list".to_owned()));
        health.ready().await;
        health.set(Part::Interception, Condition::Failing("detached".to_owned()));
        health.set(
            Part::Interception,
            Condition::Failing("detached still".to_owned()),
        );
        health.set(Part::Interception, Condition::Failing("detached".to_owned()));
        assert_eq!(
            (health.troubles(Part::Interception), health.troubles(Part::Pods)),
            (1, 0)
        );
        assert!(!health.is_ready());
        assert_eq!(
            health.to_string(),
            "[-]interception failed: detached\n[!]pods degraded: an old list\n"
        );
    }
}
