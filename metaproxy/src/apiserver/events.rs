//! Publishes Kubernetes events for pods that are refused a role or get no credentials for it, so that the pods'
//! owners see the reason (`kubectl describe pod`).
//!
//! A pod can request a forbidden role as often as it likes, so events are limited. The same sentence about a pod is
//! published once an hour. A pod has only a few events, and a node at most one event every 250 ms. The log contains
//! what is not published.
//!
//! An event's name is derived from the pod's UID and the sentence. The API server therefore refuses the same event
//! for as long as it keeps the first one, and agents that restart do not repeat it.

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
use crate::telemetry::pod_event::PodEvent;

/// The time for which the API server keeps events by default (`--event-ttl`).
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// The maximum number of events that a pod may have at once.
const MAX_EVENTS_AT_ONCE: u32 = 4;

/// The time after which a pod that has used up its events may have another one.
const POD_EVENT_INTERVAL: Duration = Duration::from_secs(120);

/// The minimum time between two events of this node.
const MIN_EVENT_INTERVAL: Duration = Duration::from_millis(250);

/// The maximum length of an object's name, in bytes (RFC 1123 subdomain).
const MAX_NAME_LENGTH: usize = 253;

/// The maximum length of a reporter's name, in bytes (`validateEvent`, pkg/apis/core/validation/events.go).
const MAX_INSTANCE_LENGTH: usize = 128;

/// Publishes events. `find_pod` returns the reference of the pod with a UID, if exactly one pod of this node has that
/// UID. Never returns.
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
            // The event was not published, so the next report of it may be.
            budgets.take_back(&pod_event);
        }
        tokio::time::sleep(MIN_EVENT_INTERVAL).await;
    }
    std::future::pending().await
}

fn event(pod: ObjectReference, node: &str, pod_event: &PodEvent, now: Timestamp) -> Event {
    // client-go names events in the same way: the object's name, a dot and hexadecimal digits. The pod's name is cut
    // if it leaves no room for them.
    let note = pod_event.note();
    let suffix = format!(".{:016x}", identity(&pod_event.uid, &note));
    let name = pod.name.as_deref().unwrap_or_default();
    let start: String = name.chars().take(MAX_NAME_LENGTH - suffix.len()).collect();
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

/// Returns the same number for the same sentence about the same pod, in every agent of a version. It is the standard
/// library's hash without a random state. A collision only suppresses one event for an hour, so an attacker gains
/// nothing from it.
fn identity(uid: &str, note: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (uid, note).hash(&mut hasher);
    hasher.finish()
}

/// The number of events that each pod may still have.
#[derive(Debug, Default)]
struct EventBudgets(HashMap<String, PodBudget>);

#[derive(Debug)]
struct PodBudget {
    /// The sentences that were published about the pod, each with its time.
    sentences: HashMap<String, Instant>,
    /// The number of events that it may have now.
    left: u32,
    /// The time from which the interval until its next event counts.
    counted: Instant,
}

impl EventBudgets {
    /// The maximum number of pods with a budget, which is more than a node has. When it is reached, all budgets are
    /// dropped.
    const MAX_PODS: usize = 4096;

    /// Returns whether an event may be published now, and counts it if so.
    fn admit(&mut self, pod_event: &PodEvent, now: Instant) -> bool {
        if self.0.len() >= Self::MAX_PODS && !self.0.contains_key(&pod_event.uid) {
            self.0.clear();
        }
        let budget = self.0.entry(pod_event.uid.clone()).or_insert_with(|| PodBudget {
            sentences: HashMap::new(),
            left: MAX_EVENTS_AT_ONCE,
            counted: now,
        });
        budget
            .sentences
            .retain(|_, published| now - *published < EVENT_TTL);
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

    /// Allows that an event whose publication has failed is published again. The failed attempt still counts, so that
    /// attempts are limited too.
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
    use crate::telemetry::pod_event::{EventReason, MAX_NOTE_LENGTH, channel};

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
    fn the_same_event_is_published_once_an_hour_and_a_pod_has_a_few_events() {
        let (mut budgets, start) = (EventBudgets::default(), Instant::now());
        assert!(budgets.admit(&pod_event("a", "no"), start));
        assert!(!budgets.admit(&pod_event("a", "no"), start + EVENT_TTL / 2));
        assert!(budgets.admit(&pod_event("a", "no"), start + EVENT_TTL));
        assert!(budgets.admit(&pod_event("b", "no"), start), "another pod's");
        assert!(!budgets.admit(&pod_event("b", "no"), start));
        budgets.take_back(&pod_event("b", "no"));
        assert!(
            budgets.admit(&pod_event("b", "no"), start),
            "it could not be published"
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
    fn an_event_is_within_the_api_servers_limits() {
        let pod = reference(&("a-".repeat(126) + "z"));
        let pod_event = pod_event("u1", &"ä".repeat(600));
        let event = event(pod, "node1", &pod_event, Timestamp::now());
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253 && !name.contains("-."), "{name}");
        let note = event.note.unwrap();
        assert!(
            note.len() <= MAX_NOTE_LENGTH && note.ends_with("ä…"),
            "{}",
            note.len()
        );
        let regarding = event.regarding.unwrap();
        assert_eq!(
            (regarding.uid.as_deref(), regarding.kind.as_deref()),
            (Some("u1"), Some("Pod"))
        );
        assert_eq!(event.metadata.namespace.as_deref(), Some("apps"));
    }

    #[test]
    fn an_events_name_depends_on_the_sentence_and_the_pod() {
        let of = |uid: &str, note: &str| identity(uid, note);
        assert_eq!(of("u1", "no"), of("u1", "no"));
        assert_ne!(of("u1", "no"), of("u2", "no"));
        assert_ne!(of("u1", "no"), of("u1", "not this"));
    }

    /// The API server keeps an event for an hour, and refuses another event of the same name.
    #[tokio::test(start_paused = true)]
    async fn an_agent_that_restarts_repeats_no_event() {
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
