//! What was said about each pod.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::{debug, warn};

use crate::pods::PodUid;
use crate::roles::Reason;

/// What was logged last about each pod, so that one that asks again and again does not fill the log.
#[derive(Debug, Default)]
pub struct Told(Mutex<HashMap<PodUid, String>>);

impl Told {
    /// More pods than a node has; then it begins anew.
    const MAX: usize = 4096;

    /// Logs a reason, as a warning where it is new for this pod; and returns it as a sentence.
    pub fn tell(&self, uid: &PodUid, reason: &Reason) -> String {
        let sentence = reason.to_string();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(uid) == Some(&sentence) {
            debug!("{sentence}");
            return sentence;
        }
        warn!("{sentence}");
        if told.len() >= Self::MAX {
            told.clear();
        }
        told.insert(uid.clone(), sentence.clone());
        sentence
    }
}
