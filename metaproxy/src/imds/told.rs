//! What was said about each pod, in the log and to its owner.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::apiserver::events::{Refusal, Refusals};
use crate::pods::PodUid;
use crate::roles::Reason;

/// What was said last about each pod, so that one that asks again and again does not fill the log.
#[derive(Debug, Default)]
pub struct Told {
    last: Mutex<HashMap<PodUid, String>>,
    owners: Option<Refusals>,
}

impl Told {
    /// More pods than a node has; then it begins anew.
    const MAX: usize = 4096;

    /// With a way to tell pods' owners, if there is one.
    pub fn new(owners: Option<Refusals>) -> Self {
        let last = Mutex::default();
        Self { last, owners }
    }

    /// Logs a reason, as a warning where it is new for this pod, tells the pod's owner of a refusal, and returns the
    /// sentence.
    pub fn tell(&self, uid: &PodUid, reason: &Reason) -> String {
        let sentence = reason.to_string();
        if let (Some(owners), true) = (&self.owners, reason.is_refusal()) {
            let (uid, sentence) = (uid.clone(), sentence.clone());
            // Where too many wait already, the log has it.
            let _ = owners.try_send(Refusal { uid, sentence });
        }
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.get(uid) == Some(&sentence) {
            debug!("{sentence}");
            return sentence;
        }
        warn!("{sentence}");
        if last.len() >= Self::MAX {
            last.clear();
        }
        last.insert(uid.clone(), sentence.clone());
        sentence
    }
}
