//! The pods' cgroup as it is at the moment.

use std::sync::{Arc, PoisonError, RwLock};

use super::PodsCgroup;

/// The pods' cgroup at the moment, written by the task that keeps the programs attached. `None` while it does not exist.
pub type CurrentPods = Arc<RwLock<Option<Arc<PodsCgroup>>>>;

/// Returns the pods' cgroup at the moment.
pub fn current(pods: &CurrentPods) -> Option<Arc<PodsCgroup>> {
    pods.read().unwrap_or_else(PoisonError::into_inner).clone()
}
