//! The current pods' cgroup.

use std::sync::{Arc, PoisonError, RwLock};

use super::PodsCgroup;

/// The current pods' cgroup; `None` while it does not exist. The task that keeps the programs attached writes it.
pub type CurrentPods = Arc<RwLock<Option<Arc<PodsCgroup>>>>;

/// Returns the current pods' cgroup.
pub fn current(pods: &CurrentPods) -> Option<Arc<PodsCgroup>> {
    pods.read().unwrap_or_else(PoisonError::into_inner).clone()
}
