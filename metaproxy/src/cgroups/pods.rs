//! Looks up the pod to which a cgroup belongs.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use metaproxy_common::layout::NUM_PODS_CGROUPS;
use thiserror::Error;

use super::file_handle::open_cgroup;
use super::{CgroupError, Naming, cgroup_id, io_error};
use crate::pods::PodUid;

/// The maximum number of cgroups that are cached with their pods. A node has fewer containers, but pods may create
/// cgroups of their own.
const MAX_CACHED: usize = 4096;

/// The pods' cgroup, with its open directory.
#[derive(Debug)]
pub struct PodsCgroup {
    path: PathBuf,
    dir: File,
    id: u64,
    naming: Naming,
    /// The cached pods, by cgroup id. An entry never becomes wrong, because an id is not used twice, and a cgroup v2
    /// directory can be neither renamed nor moved (there is no `rename` in `cgroup_kf_syscall_ops`,
    /// kernel/cgroup/cgroup.c).
    cache: Mutex<HashMap<u64, PodUid>>,
}

impl PodsCgroup {
    pub(crate) fn open(path: PathBuf) -> Result<Self, CgroupError> {
        let dir = File::open(&path).map_err(io_error(&path))?;
        let id = cgroup_id(&path).map_err(io_error(&path))?;
        let naming = Naming::of(&path);
        Ok(Self {
            path,
            dir,
            id,
            naming,
            cache: Mutex::default(),
        })
    }

    /// Returns the absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open directory, to which programs can be attached.
    pub fn dir(&self) -> &File {
        &self.dir
    }

    /// Returns the cgroup id. A cgroup that was removed and created again has another id.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Returns the ids of this cgroup and of the QoS classes' cgroups. An id is 0 if the cgroup does not exist.
    pub fn ids(&self) -> [u64; NUM_PODS_CGROUPS] {
        let [burstable, best_effort] = self
            .naming
            .class_directories()
            .map(|name| cgroup_id(&self.path.join(name)).unwrap_or_default());
        [self.id, burstable, best_effort]
    }

    /// Checks that callers can be looked up, by looking up this cgroup.
    ///
    /// # Errors If the look-up fails. No pod could be served then.
    pub fn check_lookup(&self) -> Result<(), NotAPod> {
        self.path_of(self.id).map(drop)
    }

    /// Reports whether the path still leads to this cgroup.
    pub fn is_current(&self) -> bool {
        cgroup_id(&self.path).is_ok_and(|id| id == self.id)
    }

    /// Returns the pod to which the cgroup with this id belongs.
    ///
    /// # Errors
    /// If it belongs to no pod, or was removed before its first look-up.
    pub fn pod_of(&self, cgroup_id: u64) -> Result<PodUid, NotAPod> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = cache().get(&cgroup_id) {
            return Ok(pod.clone());
        }
        let pod = self.look_up(cgroup_id)?;
        let mut cache = cache();
        if cache.len() >= MAX_CACHED {
            cache.clear();
        }
        cache.insert(cgroup_id, pod.clone());
        Ok(pod)
    }

    fn look_up(&self, cgroup_id: u64) -> Result<PodUid, NotAPod> {
        let path = self.path_of(cgroup_id)?;
        let below = path
            .strip_prefix(&self.path)
            .map_err(|_| NotAPod::Elsewhere(path.clone()))?;
        self.naming
            .pod_of(below)
            .ok_or_else(|| NotAPod::Elsewhere(path.clone()))
    }

    /// Returns the path of a cgroup, which is opened with a file handle. This needs no scan, and has no race, because
    /// ids are not used twice.
    fn path_of(&self, cgroup_id: u64) -> Result<PathBuf, NotAPod> {
        let opened =
            open_cgroup(self.dir.as_fd(), cgroup_id).map_err(|source| match source.raw_os_error() {
                Some(libc::ESTALE | libc::ENOENT) => NotAPod::Gone(cgroup_id),
                _ => NotAPod::Unreadable { cgroup_id, source },
            })?;
        let link = format!("/proc/self/fd/{}", opened.as_raw_fd());
        let path = fs::read_link(link).map_err(|source| NotAPod::Unreadable { cgroup_id, source })?;
        match path.to_str() {
            Some(text) if text.ends_with(" (deleted)") => Err(NotAPod::Gone(cgroup_id)),
            _ => Ok(path),
        }
    }

    /// Returns the path and the id of a pod's cgroup; `None` while it does not exist.
    pub fn find_pod(&self, uid: &PodUid) -> Option<(PathBuf, u64)> {
        self.naming.directories_of(uid).into_iter().find_map(|name| {
            let path = self.path.join(name);
            cgroup_id(&path).ok().map(|id| (path, id))
        })
    }
}

/// The reasons why a cgroup has no pod.
#[derive(Debug, Error)]
pub enum NotAPod {
    /// It was removed.
    #[error("its cgroup {0} does not exist any more")]
    Gone(u64),
    /// It belongs to the host, or is above the pods' cgroups.
    #[error("its cgroup {} is not that of a pod", .0.display())]
    Elsewhere(PathBuf),
    /// The look-up failed.
    #[error("cgroup {cgroup_id} cannot be looked up: {source}{}", capability(.source))]
    Unreadable {
        /// The cgroup's id.
        cgroup_id: u64,
        /// The system's error.
        source: io::Error,
    },
}

fn capability(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; the agent needs CAP_DAC_READ_SEARCH in the initial user namespace",
        _ => "",
    }
}
