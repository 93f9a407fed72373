//! Which pod a cgroup belongs to.

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

/// How many cgroups are remembered with their pods. A node has fewer containers, and pods may make cgroups of their own.
const MAX_REMEMBERED: usize = 4096;

/// The pods' cgroup, held open.
#[derive(Debug)]
pub struct PodsCgroup {
    path: PathBuf,
    dir: File,
    id: u64,
    naming: Naming,
    /// By cgroup id. What it says holds for ever: an id is not used twice, and a cgroup v2 directory can be neither renamed
    /// nor moved (it has no `rename` in `cgroup_kf_syscall_ops`, kernel/cgroup/cgroup.c).
    known: Mutex<HashMap<u64, PodUid>>,
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
            known: Mutex::default(),
        })
    }

    /// Absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open directory, to attach to.
    pub fn dir(&self) -> &File {
        &self.dir
    }

    /// Its cgroup id; a recreated one has another.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its id and those of the QoS classes' cgroups, each 0 if it is not there.
    pub fn ids(&self) -> [u64; NUM_PODS_CGROUPS] {
        let [burstable, best_effort] = self
            .naming
            .class_directories()
            .map(|name| cgroup_id(&self.path.join(name)).unwrap_or_default());
        [self.id, burstable, best_effort]
    }

    /// Looks itself up as it will look up callers.
    ///
    /// # Errors
    /// Where that can't be done: no pod could be served then.
    pub fn check_lookup(&self) -> Result<(), NotAPod> {
        self.path_of(self.id).map(drop)
    }

    /// Whether the path still leads to this very cgroup.
    pub fn is_current(&self) -> bool {
        cgroup_id(&self.path).is_ok_and(|id| id == self.id)
    }

    /// The pod to which the cgroup with this id belongs.
    ///
    /// # Errors
    /// Where it is that of no pod, or was gone before it was ever asked for.
    pub fn pod_of(&self, cgroup_id: u64) -> Result<PodUid, NotAPod> {
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pod) = known().get(&cgroup_id) {
            return Ok(pod.clone());
        }
        let pod = self.look_up(cgroup_id)?;
        let mut known = known();
        if known.len() >= MAX_REMEMBERED {
            known.clear();
        }
        known.insert(cgroup_id, pod.clone());
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

    /// One lookup by file handle: no scan, and no race, as ids are not used twice.
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

    /// The cgroup of a pod and its id; `None` while it does not exist.
    pub fn find_pod(&self, uid: &PodUid) -> Option<(PathBuf, u64)> {
        self.naming.directories_of(uid).into_iter().find_map(|name| {
            let path = self.path.join(name);
            cgroup_id(&path).ok().map(|id| (path, id))
        })
    }
}

/// Why a cgroup is not that of a pod.
#[derive(Debug, Error)]
pub enum NotAPod {
    /// Removed since.
    #[error("its cgroup {0} does not exist any more")]
    Gone(u64),
    /// Of the host, or between the pods.
    #[error("its cgroup {} is not that of a pod", .0.display())]
    Elsewhere(PathBuf),
    /// The system said no.
    #[error("cgroup {cgroup_id} cannot be looked up: {source}{}", capability(.source))]
    Unreadable {
        /// Which.
        cgroup_id: u64,
        /// Why not.
        source: io::Error,
    },
}

fn capability(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; the agent needs CAP_DAC_READ_SEARCH in the initial user namespace",
        _ => "",
    }
}
