//! Reports why a pod gets no credentials, in the log and to the pod's owner.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Level, debug, info, warn};

use crate::roles::Reason;
use crate::telemetry::log_limiter::LogLimiter;
use crate::telemetry::pod_event::{EventReason, PodEvent, PodEventSender};

/// How long a pod is answered 503 before an event is created. Most such failures end by themselves within seconds.
const UNSERVED_EVENT_AFTER: Duration = Duration::from_secs(10);

/// The longest time without a request in which a pod still counts as unserved. After a longer gap, the pod counts as
/// served in between.
const UNSERVED_GAP: Duration = Duration::from_secs(300);

/// The reporter of refusals. It stores the last report about each pod, so that a pod that repeats its requests does
/// not fill the log.
#[derive(Debug)]
pub struct RefusalReporter {
    last: Mutex<HashMap<String, Last>>,
    owners: Option<PodEventSender>,
    lines: LogLimiter,
}

/// The last report about one pod.
#[derive(Debug)]
struct Last {
    sentence: String,
    when: Instant,
    /// The time since which the pod has been answered 503. `None` if its last answer was another one.
    unserved: Option<Instant>,
}

impl RefusalReporter {
    /// The maximum number of pods whose last report is stored, which is more than a node has. When it is reached, all
    /// reports are forgotten.
    const MAX: usize = 4096;

    /// Makes a reporter. `owners` receives events for the pods' owners. If it is `None`, no events are sent.
    pub fn new(owners: Option<PodEventSender>) -> Self {
        let lines = LogLimiter::new(|more| {
            warn!(
                "and {more} more pods that get no credentials; `metaproxy explain --all` tells which, and why"
            );
        });
        Self {
            last: Mutex::default(),
            owners,
            lines,
        }
    }

    /// Reports why a pod gets no role or no credentials. Logs the reason if it is new for this pod. Sends an event if
    /// the reason is a refusal, or if it has lasted for `UNSERVED_EVENT_AFTER`.
    pub fn report(&self, uid: impl AsRef<str>, reason: &Reason) {
        let uid = uid.as_ref();
        let sentence = reason.to_string();
        let (is_news, unserved) = self.note(uid, &sentence, reason.is_unavailable());
        let event = match reason {
            reason if reason.is_refusal() => Some(EventReason::RoleRefused),
            _ if unserved >= UNSERVED_EVENT_AFTER => Some(EventReason::CredentialsUnavailable),
            _ => None,
        };
        if let (Some(owners), Some(reason)) = (&self.owners, event) {
            let (uid, sentence) = (uid.to_owned(), sentence.clone());
            // An event that does not fit into the queue is dropped. The log contains the reason anyway.
            let _ = owners.try_send(PodEvent {
                uid,
                reason,
                sentence,
            });
        }
        let may_log = is_news && level(reason) != Level::DEBUG && self.lines.may_log();
        match level(reason) {
            Level::WARN if may_log => warn!(%uid, "{sentence}"),
            Level::INFO if may_log => info!(%uid, "{sentence}"),
            _ => debug!(%uid, "{sentence}"),
        }
    }

    /// Returns the last report about a pod, and how long ago it was.
    pub fn last(&self, uid: impl AsRef<str>) -> Option<(String, Duration)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Last { sentence, when, .. } = last.get(uid.as_ref())?;
        Some((sentence.clone(), when.elapsed()))
    }

    /// Forgets the last report about a pod. If the same reason occurs again, it counts as new.
    pub fn forget(&self, uid: impl AsRef<str>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.remove(uid.as_ref());
    }

    /// Records a report. Returns whether it differs from the last one about this pod, and how long the pod has been
    /// answered 503.
    fn note(&self, uid: &str, sentence: &str, is_unserved: bool) -> (bool, Duration) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.len() >= Self::MAX && !last.contains_key(uid) {
            last.clear();
        }
        let before = last.get(uid);
        let is_news = before.is_none_or(|before| before.sentence != sentence);
        let goes_on = before
            .filter(|before| now - before.when <= UNSERVED_GAP)
            .and_then(|before| before.unserved);
        let unserved = is_unserved.then(|| goes_on.unwrap_or(now));
        let new = Last {
            sentence: sentence.to_owned(),
            when: now,
            unserved,
        };
        last.insert(uid.to_owned(), new);
        (is_news, unserved.map_or(Duration::ZERO, |since| now - since))
    }
}

fn level(reason: &Reason) -> Level {
    match reason {
        // The session cache logs its failures, once for all pods that share the session.
        Reason::StsDenied { .. }
        | Reason::TokenDenied { .. }
        | Reason::StsUnavailable { .. }
        | Reason::SessionsPaced { .. } => Level::DEBUG,
        Reason::NoRole { .. } | Reason::Firewall => Level::INFO,
        _ => Level::WARN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_news(reporter: &RefusalReporter, uid: &str, sentence: &str) -> bool {
        reporter.note(uid, sentence, false).0
    }

    #[test]
    fn a_reason_is_reported_once_until_the_pod_is_forgotten() {
        let (reporter, uid) = (RefusalReporter::new(None), "u");
        reporter.report(uid, &Reason::Firewall);
        let sentence = Reason::Firewall.to_string();
        assert!(!is_news(&reporter, "u", &sentence), "it was reported");
        assert!(is_news(&reporter, "other", &sentence));
        reporter.forget(uid);
        assert!(is_news(&reporter, "u", &sentence));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_answered_503_for_ten_seconds_gets_an_event() {
        let (owners, mut events) = crate::telemetry::pod_event::channel();
        let reporter = RefusalReporter::new(Some(owners));
        let uid = "u";
        let away = Reason::StsUnavailable {
            role: "arn:aws:iam::123456789012:role/app".parse().unwrap(),
            message: "down".to_owned(),
        };
        let mut has_event = async |seconds| {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            reporter.report(uid, &away);
            events.try_recv().ok().map(|event| event.reason)
        };
        assert_eq!(has_event(0).await, None, "it may be over in a second");
        assert_eq!(has_event(5).await, None);
        assert_eq!(has_event(5).await, Some(EventReason::CredentialsUnavailable));
        assert_eq!(
            has_event(301).await,
            None,
            "it has not asked for so long that it may have been served"
        );
        reporter.report(uid, &Reason::Firewall);
        assert_eq!(has_event(60).await, None, "it was answered otherwise");
    }

    #[test]
    fn a_reason_has_the_log_level_of_its_kind() {
        assert_eq!(level(&Reason::Firewall), Level::INFO);
        let role = "arn:aws:iam::123456789012:role/app".parse().unwrap();
        let message = "down".to_owned();
        assert_eq!(level(&Reason::StsUnavailable { role, message }), Level::DEBUG);
        let uid = "u".parse().unwrap();
        assert_eq!(level(&Reason::PodUnknown { uid }), Level::WARN);
    }
}
