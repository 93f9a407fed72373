//! Events for a pod's owner. An event reports that the pod is refused a role, or that the agent cannot obtain its
//! credentials.

use tokio::sync::mpsc;

/// The maximum number of events that wait to be published.
const QUEUE_CAPACITY: usize = 256;

/// The longest note of an event, in bytes (`validateEvent`, pkg/apis/core/validation/events.go).
pub(crate) const MAX_NOTE_LENGTH: usize = 1024;

/// The reason for an event (its `reason` field).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// The pod requests a role that it may not have.
    RoleRefused,
    /// The pod has been answered 503 for a longer time.
    CredentialsUnavailable,
}

impl EventReason {
    /// Returns the value of the event's `reason` field.
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
    /// The reason for the event.
    pub reason: EventReason,
    /// The message for the owner.
    pub sentence: String,
}

impl PodEvent {
    /// Returns the sentence, cut to the maximum length of an event's note.
    pub fn note(&self) -> String {
        let sentence = &self.sentence;
        if sentence.len() <= MAX_NOTE_LENGTH {
            return sentence.clone();
        }
        let end = sentence.floor_char_boundary(MAX_NOTE_LENGTH - "…".len());
        format!("{}…", &sentence[..end])
    }
}

/// The sender of events to publish. An event that does not fit into the queue is dropped. The log contains its
/// message anyway.
pub type PodEventSender = mpsc::Sender<PodEvent>;

/// Makes the queue between the reporter of events and the task that publishes them.
pub fn channel() -> (PodEventSender, mpsc::Receiver<PodEvent>) {
    mpsc::channel(QUEUE_CAPACITY)
}
