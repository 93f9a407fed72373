//! Events for a pod's owner, who reads that the pod is refused a role, or goes without its credentials.

use tokio::sync::mpsc;

/// Events that wait to be published.
const QUEUE_CAPACITY: usize = 256;

/// The longest note of an event, in bytes (`validateEvent`, pkg/apis/core/validation/events.go).
pub(crate) const MAX_NOTE_LENGTH: usize = 1024;

/// Why there is an event (its `reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// The pod may not have the role that it asks for.
    RoleRefused,
    /// The pod goes on being answered 503.
    CredentialsUnavailable,
}

impl EventReason {
    /// Returns the reason as the event has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RoleRefused => "RoleRefused",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
        }
    }
}

/// An event on a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod's UID.
    pub uid: String,
    /// What it is about.
    pub reason: EventReason,
    /// What the owner reads.
    pub sentence: String,
}

impl PodEvent {
    /// Returns the sentence, cut to what an event holds.
    pub fn note(&self) -> String {
        let sentence = &self.sentence;
        if sentence.len() <= MAX_NOTE_LENGTH {
            return sentence.clone();
        }
        let end = sentence.floor_char_boundary(MAX_NOTE_LENGTH - "…".len());
        format!("{}…", &sentence[..end])
    }
}

/// Takes events to publish. What does not fit into the queue is dropped; the log has it all the same.
pub type PodEventSender = mpsc::Sender<PodEvent>;

/// Makes the queue between what reports and what publishes.
pub fn channel() -> (PodEventSender, mpsc::Receiver<PodEvent>) {
    mpsc::channel(QUEUE_CAPACITY)
}
