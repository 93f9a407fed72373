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
use crate::pods::{Known, Pod, PodUid, Pods};

/// How long the API server keeps events where it is not told otherwise (`--event-ttl`).
const SAME: Duration = Duration::from_secs(3600);

/// Events that a pod may have at once, and how often it earns another.
const OF_A_POD: u32 = 4;
const EARNED: Duration = Duration::from_secs(120);

/// Between two events of this node.
const PACE: Duration = Duration::from_millis(250);

/// Refusals that wait to be told.
const WAITING: usize = 256;

/// Longest text (`validateEvent`, pkg/apis/core/validation/events.go: 1024 bytes).
const LONGEST: usize = 1024;

/// Longest name of a reporter (the same).
const LONGEST_INSTANCE: usize = 128;

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
pub struct Refusal {
    /// The pod.
    pub uid: PodUid,
    /// What it is about.
    pub reason: EventReason,
    /// The sentence.
    pub sentence: String,
}

impl Refusal {
    /// The sentence, as far as an event holds it.
    pub fn note(&self) -> String {
        shortened(&self.sentence)
    }
}

/// Takes refusals; what is too much is dropped.
pub type Refusals = mpsc::Sender<Refusal>;

/// A way to tell them.
pub fn channel() -> (Refusals, mpsc::Receiver<Refusal>) {
    mpsc::channel(WAITING)
}

/// Tells pods' owners. Never ends.
pub async fn tell(api: ApiServer, node: String, pods: Pods, mut refusals: mpsc::Receiver<Refusal>) {
    let mut told = Told::default();
    while let Some(refusal) = refusals.recv().await {
        let known = pods.borrow().by_uid(&refusal.uid).cloned();
        let Some(Known::Pod(pod)) = known else {
            continue;
        };
        if !told.is_due(&refusal, Instant::now()) {
            continue;
        }
        let event = event(&pod, &node, &refusal, Timestamp::now());
        let events: Api<Event> = Api::namespaced(api.client(), &pod.namespace);
        let params = PostParams::default();
        let made = async {
            match events.create(&params, &event).await {
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
                made => made.map(drop),
            }
        };
        if let Err(error) = with_timeout(REQUEST_TIMEOUT, made).await {
            debug!("an event on pod {pod} could not be made: {error}");
            // The next time that it comes up.
            told.take_back(&refusal);
        }
        tokio::time::sleep(PACE).await;
    }
    std::future::pending().await
}

fn event(pod: &Pod, node: &str, refusal: &Refusal, now: Timestamp) -> Event {
    // Names of events end like this everywhere; that of a pod may be as long as a name may be.
    let note = refusal.note();
    let suffix = format!(".{:016x}", identity(&pod.uid, &note));
    let start: String = pod.name.chars().take(253 - suffix.len()).collect();
    let start = start.trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{start}{suffix}")),
            namespace: Some(pod.namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some("Warning".to_owned()),
        reason: Some(refusal.reason.name().to_owned()),
        action: Some("AssumeRole".to_owned()),
        note: Some(note),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: Some(pod.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("metaproxy".to_owned()),
        reporting_instance: Some(node.chars().take(LONGEST_INSTANCE).collect()),
        ..Event::default()
    }
}

/// The same for the same sentence about the same pod, of every agent of a version: the standard library's hash without a random
/// state. Nobody gains by a collision, which costs an event for an hour.
fn identity(uid: &PodUid, note: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (uid.to_string(), note).hash(&mut hasher);
    hasher.finish()
}

fn shortened(sentence: &str) -> String {
    if sentence.len() <= LONGEST {
        return sentence.to_owned();
    }
    let end = (0..=LONGEST - 3)
        .rev()
        .find(|end| sentence.is_char_boundary(*end));
    format!("{}…", &sentence[..end.unwrap_or_default()])
}

/// What pods' owners were told.
#[derive(Debug, Default)]
struct Told(HashMap<PodUid, OfAPod>);

#[derive(Debug)]
struct OfAPod {
    sentences: HashMap<String, Instant>,
    left: u32,
    counted: Instant,
}

impl Told {
    /// More pods than a node has; then it begins anew.
    const MAX: usize = 4096;

    /// Whether this is told now; it counts as told then.
    fn is_due(&mut self, refusal: &Refusal, now: Instant) -> bool {
        if self.0.len() >= Self::MAX && !self.0.contains_key(&refusal.uid) {
            self.0.clear();
        }
        let of_pod = self.0.entry(refusal.uid.clone()).or_insert_with(|| OfAPod {
            sentences: HashMap::new(),
            left: OF_A_POD,
            counted: now,
        });
        of_pod.sentences.retain(|_, told| now - *told < SAME);
        while of_pod.left < OF_A_POD && now - of_pod.counted >= EARNED {
            of_pod.left += 1;
            of_pod.counted += EARNED;
        }
        if of_pod.left == OF_A_POD {
            of_pod.counted = now;
        }
        if of_pod.left == 0 || of_pod.sentences.contains_key(&refusal.sentence) {
            return false;
        }
        of_pod.left -= 1;
        of_pod.sentences.insert(refusal.sentence.clone(), now);
        true
    }

    /// It was not told after all.
    fn take_back(&mut self, refusal: &Refusal) {
        if let Some(of_pod) = self.0.get_mut(&refusal.uid) {
            of_pod.sentences.remove(&refusal.sentence);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::pods::Inventory;

    fn refusal(uid: &str, sentence: &str) -> Refusal {
        Refusal {
            uid: uid.parse().unwrap(),
            reason: EventReason::RoleRefused,
            sentence: sentence.to_owned(),
        }
    }

    #[test]
    fn the_same_is_told_once_an_hour_and_a_pod_has_a_few_events() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert!(told.is_due(&refusal("a", "no"), start));
        assert!(!told.is_due(&refusal("a", "no"), start + SAME / 2));
        assert!(told.is_due(&refusal("a", "no"), start + SAME));
        assert!(told.is_due(&refusal("b", "no"), start), "another pod's");
        assert!(!told.is_due(&refusal("b", "no"), start));
        told.take_back(&refusal("b", "no"));
        assert!(told.is_due(&refusal("b", "no"), start), "it could not be told");
        let now = start + 3 * SAME;
        let due: Vec<bool> = (0..6)
            .map(|index| told.is_due(&refusal("a", &format!("no {index}")), now))
            .collect();
        assert_eq!(due, [true, true, true, true, false, false]);
        assert!(
            told.is_due(&refusal("a", "no 4"), now + EARNED),
            "it has earned another"
        );
        assert!(!told.is_due(&refusal("a", "no 5"), now + EARNED));
    }

    #[test]
    fn an_event_fits_what_the_api_server_takes() {
        let pod = Pod::from_api(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": "a-".repeat(126) + "z", "namespace": "apps", "uid": "u1"},
            }))
            .unwrap(),
        )
        .unwrap();
        let refusal = refusal("u1", &"ä".repeat(600));
        let event = event(&pod, "node1", &refusal, Timestamp::now());
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
        let of = |uid: &str, note: &str| identity(&uid.parse().unwrap(), note);
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
        let pod = Pod::from_api(
            serde_json::from_value(serde_json::json!({
                "metadata": { "name": "web", "namespace": "apps", "uid": "u1" },
            }))
            .unwrap(),
        )
        .unwrap();
        let inventory = Inventory::new([Arc::new(pod)], [], []);
        let pods = tokio::sync::watch::channel(Arc::new(inventory)).1;
        for _agent in 0..2 {
            let (refusals, told) = channel();
            tokio::spawn(tell(api.clone(), "node1".to_owned(), pods.clone(), told));
            for _ in 0..2 {
                refusals.send(refusal("u1", "no")).await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        let names = names.lock().unwrap();
        assert_eq!(names.len(), 2, "one attempt of each agent: {names:?}");
        assert_eq!(names[0], names[1]);
    }
}
