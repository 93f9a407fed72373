//! Kubernetes events on pods that are refused a role, or go without its credentials, so that their owners see why
//! (`kubectl describe pod`).
//!
//! A pod can ask for what it may not have as often as it likes: the same sentence about a pod is told once an hour, a
//! pod has a few events, and the node an event every now and then. What is too much is in the log all the same.
//!
//! An event's name is made of the pod's UID and the sentence, so the API server itself refuses the same one for as long as it
//! keeps it: agents that start again and again do not repeat it.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::{ApiServer, REQUEST_TIMEOUT, with_timeout};

/// How long the API server keeps events where it is not told otherwise (`--event-ttl`).
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// Events that a pod may have at once, and how often it earns another.
const MAX_EVENTS_AT_ONCE: u32 = 4;
const POD_EVENT_INTERVAL: Duration = Duration::from_secs(120);

/// Between two events of this node.
const MIN_EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// Events that wait to be published.
const QUEUE_CAPACITY: usize = 256;

/// Longest text (`validateEvent`, pkg/apis/core/validation/events.go: 1024 bytes).
const MAX_NOTE_LENGTH: usize = 1024;

/// Longest name of a reporter (the same).
const MAX_INSTANCE_LENGTH: usize = 128;

/// What an event is about (`reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventReason {
    /// The pod may not have the role that it asks for.
    RoleRefused,
    /// The pod goes on being answered 503.
    CredentialsUnavailable,
}

impl EventReason {
    fn name(self) -> &'static str {
        match self {
            Self::RoleRefused => "RoleRefused",
            Self::CredentialsUnavailable => "CredentialsUnavailable",
        }
    }
}

/// Something to tell a pod's owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod.
    pub uid: String,
    /// What it is about.
    pub reason: EventReason,
    /// The sentence.
    pub sentence: String,
}

impl PodEvent {
    /// The sentence, as far as an event holds it.
    pub fn note(&self) -> String {
        shortened(&self.sentence)
    }
}

/// Takes refusals; what is too much is dropped.
pub type PodEventSender = mpsc::Sender<PodEvent>;

/// A way to tell them.
pub fn channel() -> (PodEventSender, mpsc::Receiver<PodEvent>) {
    mpsc::channel(QUEUE_CAPACITY)
}

/// Tells pods' owners. Never ends.
pub async fn publish(
    api: ApiServer,
    node: String,
    mut pod_events: mpsc::Receiver<PodEvent>,
    find_pod: impl Fn(&str) -> Option<ObjectReference>,
) {
    let mut budgets = EventBudgets::default();
    while let Some(pod_event) = pod_events.recv().await {
        let Some(pod) = find_pod(&pod_event.uid) else {
            continue;
        };
        if !budgets.admit(&pod_event, Instant::now()) {
            continue;
        }
        let events: Api<Event> = Api::namespaced(api.client(), pod.namespace.as_deref().unwrap_or_default());
        let event = event(pod, &node, &pod_event, Timestamp::now());
        let params = PostParams::default();
        let made = async {
            match events.create(&params, &event).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                made => made.map(drop),
            }
        };
        if let Err(error) = with_timeout(REQUEST_TIMEOUT, made).await {
            debug!(
                uid = pod_event.uid,
                "an event on a pod could not be made: {error}"
            );
            // The next time that it comes up.
            budgets.take_back(&pod_event);
        }
        tokio::time::sleep(MIN_EVENT_INTERVAL).await;
    }
    std::future::pending().await
}

fn event(pod: ObjectReference, node: &str, pod_event: &PodEvent, now: Timestamp) -> Event {
    // Names of events end like this everywhere; that of a pod may be as long as a name may be.
    let note = pod_event.note();
    let suffix = format!(".{:016x}", identity(&pod_event.uid, &note));
    let name = pod.name.as_deref().unwrap_or_default();
    let start: String = name.chars().take(253 - suffix.len()).collect();
    let start = start.trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{start}{suffix}")),
            namespace: pod.namespace.clone(),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(pod_event.reason.name().to_owned()),
        action: Some("AssumeRole".to_owned()),
        note: Some(note),
        regarding: Some(pod),
        reporting_controller: Some("metaproxy".to_owned()),
        reporting_instance: Some(node.chars().take(MAX_INSTANCE_LENGTH).collect()),
        ..Event::default()
    }
}

/// The same for the same sentence about the same pod, of every agent of a version: the standard library's hash without a random
/// state. Nobody gains by a collision, which costs an event for an hour.
fn identity(uid: &str, note: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (uid, note).hash(&mut hasher);
    hasher.finish()
}

fn shortened(sentence: &str) -> String {
    if sentence.len() <= MAX_NOTE_LENGTH {
        return sentence.to_owned();
    }
    let end = (0..=MAX_NOTE_LENGTH - 3)
        .rev()
        .find(|end| sentence.is_char_boundary(*end));
    format!("{}…", &sentence[..end.unwrap_or_default()])
}

/// What pods' owners were told.
#[derive(Debug, Default)]
struct EventBudgets(HashMap<String, PodBudget>);

#[derive(Debug)]
struct PodBudget {
    sentences: HashMap<String, Instant>,
    left: u32,
    counted: Instant,
}

impl EventBudgets {
    /// More pods than a node has; then it begins anew.
    const MAX_PODS: usize = 4096;

    /// Whether this is told now; it counts as told then.
    fn admit(&mut self, pod_event: &PodEvent, now: Instant) -> bool {
        if self.0.len() >= Self::MAX_PODS && !self.0.contains_key(&pod_event.uid) {
            self.0.clear();
        }
        let budget = self.0.entry(pod_event.uid.clone()).or_insert_with(|| PodBudget {
            sentences: HashMap::new(),
            left: MAX_EVENTS_AT_ONCE,
            counted: now,
        });
        budget.sentences.retain(|_, told| now - *told < EVENT_TTL);
        while budget.left < MAX_EVENTS_AT_ONCE && now - budget.counted >= POD_EVENT_INTERVAL {
            budget.left += 1;
            budget.counted += POD_EVENT_INTERVAL;
        }
        if budget.left == MAX_EVENTS_AT_ONCE {
            budget.counted = now;
        }
        if budget.left == 0 || budget.sentences.contains_key(&pod_event.sentence) {
            return false;
        }
        budget.left -= 1;
        budget.sentences.insert(pod_event.sentence.clone(), now);
        true
    }

    /// It was not told after all.
    fn take_back(&mut self, pod_event: &PodEvent) {
        if let Some(budget) = self.0.get_mut(&pod_event.uid) {
            budget.sentences.remove(&pod_event.sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    fn pod_event(uid: &str, sentence: &str) -> PodEvent {
        PodEvent {
            uid: uid.to_owned(),
            reason: EventReason::RoleRefused,
            sentence: sentence.to_owned(),
        }
    }

    fn reference(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: Some("apps".to_owned()),
            name: Some(name.to_owned()),
            uid: Some("u1".to_owned()),
            ..ObjectReference::default()
        }
    }

    #[test]
    fn the_same_is_told_once_an_hour_and_a_pod_has_a_few_events() {
        let (mut budgets, start) = (EventBudgets::default(), Instant::now());
        assert!(budgets.admit(&pod_event("a", "no"), start));
        assert!(!budgets.admit(&pod_event("a", "no"), start + EVENT_TTL / 2));
        assert!(budgets.admit(&pod_event("a", "no"), start + EVENT_TTL));
        assert!(budgets.admit(&pod_event("b", "no"), start), "another pod's");
        assert!(!budgets.admit(&pod_event("b", "no"), start));
        budgets.take_back(&pod_event("b", "no"));
        assert!(
            budgets.admit(&pod_event("b", "no"), start),
            "it could not be told"
        );
        let now = start + 3 * EVENT_TTL;
        let due: Vec<bool> = (0..6)
            .map(|index| budgets.admit(&pod_event("a", &format!("no {index}")), now))
            .collect();
        assert_eq!(due, [true, true, true, true, false, false]);
        assert!(
            budgets.admit(&pod_event("a", "no 4"), now + POD_EVENT_INTERVAL),
            "it has earned another"
        );
        assert!(!budgets.admit(&pod_event("a", "no 5"), now + POD_EVENT_INTERVAL));
    }

    #[test]
    fn an_event_fits_what_the_api_server_takes() {
        let pod = reference(&("a-".repeat(126) + "z"));
        let pod_event = pod_event("u1", &"ä".repeat(600));
        let event = event(pod, "node1", &pod_event, Timestamp::now());
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253 && !name.contains("-."), "{name}");
        let note = event.note.unwrap();
        assert!(note.len() <= 1024 && note.ends_with("ä…"), "{}", note.len());
        let regarding = event.regarding.unwrap();
        assert_eq!(
            (regarding.uid.as_deref(), regarding.kind.as_deref()),
            (Some("u1"), Some("Pod"))
        );
        assert_eq!(event.metadata.namespace.as_deref(), Some("apps"));
    }

    #[test]
    fn an_events_name_is_that_of_the_sentence_and_the_pod() {
        let of = |uid: &str, note: &str| identity(uid, note);
        assert_eq!(of("u1", "no"), of("u1", "no"));
        assert_ne!(of("u1", "no"), of("u2", "no"));
        assert_ne!(of("u1", "no"), of("u1", "not this"));
    }

    /// The API server keeps an event for an hour, and refuses another one of its name.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_starts_again_repeats_no_event() {
        let names = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&names);
        let api = ApiServer::fake(move |_, _, body| {
            let mut names = shown.lock().unwrap();
            let name = body["metadata"]["name"].clone();
            let is_there = names.contains(&name);
            names.push(name);
            if is_there {
                let status = serde_json::json!({ "kind": "Status", "status": "Failure", "code": 409, "message": "it exists" });
                return (409, status);
            }
            (201, body)
        });
        let find = |_: &str| Some(reference("web"));
        for _agent in 0..2 {
            let (sender, receiver) = channel();
            tokio::spawn(publish(api.clone(), "node1".to_owned(), receiver, find));
            for _ in 0..2 {
                sender.send(pod_event("u1", "no")).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let names = names.lock().unwrap();
        assert_eq!(names.len(), 2, "one attempt of each agent: {names:?}");
        assert_eq!(names[0], names[1]);
    }
}
