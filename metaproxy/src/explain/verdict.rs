//! The outcomes of explanations.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::credentials::SessionView;
use crate::roles::{Decision, Reason};

/// The outcome for a pod, from its decision and the state of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The pod has its role.
    Granted,
    /// The pod requests a role, and is denied it.
    Refused,
    /// The pod may have its role, but there are no credentials at the moment.
    Unavailable,
    /// The pod's connections do not reach the agent, so its role has no effect.
    NotIntercepted,
    /// The pod requests no role.
    NoRole,
    /// An object or fact that the decision needs is not known yet, and the agent waits for it.
    Waiting,
    /// An object that the decision needs is missing in the explained manifests.
    Unknown,
}

impl Verdict {
    /// The verdicts that an agent reports.
    pub const ALL: [Self; 6] = [
        Self::Granted,
        Self::Refused,
        Self::Unavailable,
        Self::NotIntercepted,
        Self::NoRole,
        Self::Waiting,
    ];

    /// Returns the verdict of a decision, without its session.
    pub(super) fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Granted(_) => Self::Granted,
            // The agent can't tell which of the pods is the client.
            Decision::Refused { .. } | Decision::NoRole(Reason::Ambiguous { .. }) => Self::Refused,
            Decision::NoRole(_) => Self::NoRole,
            Decision::Wait(_) => Self::Waiting,
        }
    }

    /// Returns the verdict of a decision and the state of its session.
    pub fn with(decision: &Decision, view: Option<&SessionView>, now: SystemTime) -> Self {
        let Decision::Granted(grant) = decision else {
            return Self::of(decision);
        };
        match view.and_then(|view| view.lacking(grant, now)) {
            None => Self::Granted,
            Some(reason) if reason.is_refusal() => Self::Refused,
            Some(_) => Self::Unavailable,
        }
    }

    /// Returns the value of the metrics' label `verdict`.
    pub fn metric(self) -> &'static str {
        match self {
            Self::NoRole => "no_role",
            Self::NotIntercepted => "not_intercepted",
            other => other.label(),
        }
    }

    /// Returns the words that operators read.
    pub fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::NotIntercepted => "not intercepted",
            Self::NoRole => "no role",
            Self::Waiting => "waiting",
            Self::Unknown => "unknown",
        }
    }
}
