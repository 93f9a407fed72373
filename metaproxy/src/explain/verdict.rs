//! What comes of a pod's role.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::credentials::SessionView;
use crate::roles::{Decision, Reason};

/// What comes of a pod's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It has one.
    Granted,
    /// It asks for one, and may not have it.
    Refused,
    /// It may have it, but there are no credentials at the moment.
    Unavailable,
    /// Its connections do not come to the agent, so that its role does not count.
    NotIntercepted,
    /// It asks for none.
    NoRole,
    /// It can't be told yet; the agent waits for what is missing.
    Waiting,
    /// It can't be told from the manifests that are explained; nothing is waited for.
    Unknown,
}

impl Verdict {
    /// Those of pods that an agent knows.
    pub const ALL: [Self; 6] = [
        Self::Granted,
        Self::Refused,
        Self::Unavailable,
        Self::NotIntercepted,
        Self::NoRole,
        Self::Waiting,
    ];

    /// By what was decided, before anything is known of a session.
    pub(super) fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Granted(_) => Self::Granted,
            // Nobody can tell which of them asks.
            Decision::Refused { .. } | Decision::NoRole(Reason::Ambiguous { .. }) => Self::Refused,
            Decision::NoRole(_) => Self::NoRole,
            Decision::Wait(_) => Self::Waiting,
        }
    }

    /// By what was decided, and what there is of the session.
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

    /// As a label of metrics.
    pub fn metric(self) -> &'static str {
        match self {
            Self::NoRole => "no_role",
            Self::NotIntercepted => "not_intercepted",
            other => other.label(),
        }
    }

    /// In words.
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
