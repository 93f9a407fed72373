//! What was said about each pod, in the log and to its owner.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::{Level, debug, info, warn};

use crate::apiserver::events::{Refusal, Refusals};
use crate::pods::PodUid;
use crate::roles::Reason;
use crate::sparing::Sparing;

/// What was said last about each pod, so that one that asks again and again does not fill the log.
#[derive(Debug)]
pub struct Told {
    last: Mutex<HashMap<PodUid, (String, Instant)>>,
    owners: Option<Refusals>,
    lines: Sparing,
}

impl Told {
    /// More pods than a node has; then it begins anew.
    const MAX: usize = 4096;

    /// With a way to tell pods' owners, if there is one.
    pub fn new(owners: Option<Refusals>) -> Self {
        let lines = Sparing::new(|more| {
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

    /// Logs a reason where it is new for this pod, tells the pod's owner of a refusal, and returns the sentence.
    pub fn tell(&self, uid: &PodUid, reason: &Reason) -> String {
        let sentence = reason.to_string();
        if let (Some(owners), true) = (&self.owners, reason.is_refusal()) {
            let (uid, sentence) = (uid.clone(), sentence.clone());
            // Where too many wait already, the log has it.
            let _ = owners.try_send(Refusal { uid, sentence });
        }
        let may_say = self.is_news(uid, &sentence) && level(reason) != Level::DEBUG && self.lines.may_say();
        match level(reason) {
            Level::WARN if may_say => warn!(%uid, "{sentence}"),
            Level::INFO if may_say => info!(%uid, "{sentence}"),
            _ => debug!(%uid, "{sentence}"),
        }
        sentence
    }

    /// What was said last about a pod, and how long ago.
    pub fn last(&self, uid: &PodUid) -> Option<(String, Duration)> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (sentence, when) = last.get(uid)?;
        Some((sentence.clone(), when.elapsed()))
    }

    /// What was said about a pod is over, and is news when it comes again.
    pub fn forget(&self, uid: &PodUid) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.remove(uid);
    }

    /// Whether it is something else than was said last about this pod.
    fn is_news(&self, uid: &PodUid, sentence: &str) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some((_, when)) = last.get_mut(uid).filter(|(said, _)| said == sentence) {
            *when = now;
            return false;
        }
        if last.len() >= Self::MAX {
            last.clear();
        }
        last.insert(uid.clone(), (sentence.to_owned(), now));
        true
    }
}

fn level(reason: &Reason) -> Level {
    match reason {
        // The session's own failures are said where it is fetched, once for all who share it.
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

    #[test]
    fn a_pod_is_told_of_once_until_it_is_forgotten() {
        let (told, uid) = (Told::new(None), "u".parse().unwrap());
        let sentence = told.tell(&uid, &Reason::Firewall);
        assert!(!told.is_news(&uid, &sentence), "it was said");
        assert!(told.is_news(&"other".parse().unwrap(), &sentence));
        told.forget(&uid);
        assert!(told.is_news(&uid, &sentence));
    }

    #[test]
    fn a_pod_without_a_role_is_no_reason_to_warn_and_a_failure_of_sts_is_said_by_others() {
        assert_eq!(level(&Reason::Firewall), Level::INFO);
        let role = "arn:aws:iam::123456789012:role/app".parse().unwrap();
        let message = "down".to_owned();
        assert_eq!(level(&Reason::StsUnavailable { role, message }), Level::DEBUG);
        let uid = "u".parse().unwrap();
        assert_eq!(level(&Reason::PodUnknown { uid }), Level::WARN);
    }
}
