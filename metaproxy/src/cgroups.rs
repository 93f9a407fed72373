//! Finds the mount of the cgroup v2 tree, the pods' cgroup in it, and the pod to which a cgroup belongs.

mod current;
mod file_handle;
mod mounts;
mod naming;
mod own;
mod pods;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use thiserror::Error;

pub use self::current::{CurrentPods, current};
use self::mounts::cgroup2_mounts;
pub use self::naming::Naming;
pub use self::own::{OwnCgroup, holds_this_process};
pub use self::pods::{NotAPod, PodsCgroup};

/// The reasons why the cgroup tree cannot be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// Only cgroup v1 is mounted.
    #[error(
        "no cgroup v2 hierarchy is mounted: this node runs cgroup v1 only, where programs can't be attached to the \
         pods' cgroup. Boot the node with systemd.unified_cgroup_hierarchy=1, or, if the agent runs in a container, \
         mount the host's /sys/fs/cgroup into it"
    )]
    NoCgroup2,
    /// Cgroup v2 is mounted, but the pods are not in it.
    #[error(
        "this node's kubelet keeps its pods in cgroup v1 ({0}), and none are in the cgroup v2 tree, where they would \
         be intercepted. Boot the node with systemd.unified_cgroup_hierarchy=1"
    )]
    PodsInV1(PathBuf),
    /// The directory of a flag is in another file system.
    #[error(
        "{flag} {path}: not a directory of a cgroup v2 mount; give a path such as /sys/fs/cgroup{example}"
    )]
    NotCgroup2 {
        /// The flag.
        flag: &'static str,
        /// The path in the flag.
        path: PathBuf,
        /// The rest of the example in the message.
        example: &'static str,
    },
    /// The directory of a flag has only some of the pods.
    #[error(
        "{flag} {path}: not the cgroup of all pods but one below it, so that other pods would not be intercepted; give {pods}",
        path = .path.display(), pods = .pods.display()
    )]
    NotAllPods {
        /// The flag.
        flag: &'static str,
        /// The path in the flag.
        path: PathBuf,
        /// The pods' cgroup, by its name.
        pods: PathBuf,
    },
    /// There is more than one candidate.
    #[error("more than one pods' cgroup was found ({}); choose one with --cgroup", list(.0))]
    Ambiguous(Vec<PathBuf>),
    /// The cgroup of this process is not below the mounts.
    #[error(
        "cannot find this process's own cgroup below {}: give the agent's container the host's cgroup v2 tree (hostPath \
         /sys/fs/cgroup), or name its mount with --cgroup-root", list(.0)
    )]
    OwnNotFound(Vec<PathBuf>),
    /// A file or directory cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The path that cannot be read.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Finds the pods' cgroup by the cgroup2 mounts and the flags.
#[derive(Debug)]
pub struct Locator {
    roots: Vec<PathBuf>,
    explicit: Option<PathBuf>,
}

impl Locator {
    /// Makes a locator. `cgroup_root` and `cgroup` are the flags. Without `cgroup_root`, the mounts are read from
    /// `/proc/self/mountinfo`.
    ///
    /// # Errors
    /// If there is no cgroup2 mount, or a flag names another directory.
    pub fn new(cgroup_root: Option<&Path>, cgroup: Option<&Path>) -> Result<Self, CgroupError> {
        let mounts = || {
            let path = Path::new("/proc/self/mountinfo");
            Ok(cgroup2_mounts(&fs::read_to_string(path).map_err(io_error(path))?))
        };
        let roots = match cgroup_root {
            Some(root) => vec![checked("--cgroup-root", root, "")?],
            None => mounts()?,
        };
        if roots.is_empty() {
            return Err(CgroupError::NoCgroup2);
        }
        let explicit = cgroup.map(|path| explicit(path, &roots)).transpose()?;
        Ok(Self { roots, explicit })
    }

    /// Returns the cgroup2 mounts.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Finds the pods' cgroup; `None` while it does not exist.
    ///
    /// # Errors
    /// If there are several, or the cgroup cannot be opened.
    pub fn locate(&self) -> Result<Option<PodsCgroup>, CgroupError> {
        let found = match &self.explicit {
            Some(path) => path.is_dir().then(|| path.clone()),
            None => self.search()?,
        };
        found.map(PodsCgroup::open).transpose()
    }

    /// Checks, while there are no pods in cgroup v2, that there are none in cgroup v1 either. If pods are in cgroup
    /// v1, their cgroup in v2 will never appear.
    ///
    /// # Errors
    /// [`CgroupError::PodsInV1`], unless a flag names the cgroup.
    pub fn check_v1(&self, v1: &Path) -> Result<(), CgroupError> {
        // In a container, the host's cgroup v1 trees are beside the host's cgroup v2 mount.
        let beside = self.roots.iter().filter_map(|root| root.parent());
        let mut pods = beside
            .chain([v1])
            .flat_map(|v1| ["cpu/kubepods", "cpu/kubepods.slice"].map(|name| v1.join(name)));
        match pods.find(|path| self.explicit.is_none() && path.is_dir()) {
            Some(path) => Err(CgroupError::PodsInV1(path)),
            None => Ok(()),
        }
    }

    /// Describes the path or the names that are looked for, for log lines and messages.
    pub fn describe(&self) -> String {
        match &self.explicit {
            Some(path) => path.display().to_string(),
            None => format!("kubepods or kubepods.slice below {}", list(&self.roots)),
        }
    }

    fn search(&self) -> Result<Option<PathBuf>, CgroupError> {
        let mut found: Vec<PathBuf> = self
            .roots
            .iter()
            .flat_map(|root| pods_cgroups_below(root))
            .collect();
        // One hierarchy may be mounted at several places (Cilium mounts it again). Each cgroup counts once, if
        // possible with its path below `/sys/fs/cgroup`.
        found.sort_by_key(|path| (!path.starts_with("/sys/fs/cgroup"), path.clone()));
        let mut seen = BTreeSet::new();
        found.retain(|path| identity(path).is_none_or(|identity| seen.insert(identity)));
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(CgroupError::Ambiguous(found)),
        }
    }
}

/// Checks `--cgroup`. The directory need not exist yet, but it must be in a cgroup2 mount.
fn explicit(path: &Path, roots: &[PathBuf]) -> Result<PathBuf, CgroupError> {
    const FLAG: &str = "--cgroup";
    const EXAMPLE: &str = "/kubepods.slice";
    let found = if path.exists() {
        checked(FLAG, path, EXAMPLE)?
    } else {
        let normalized = normalized(path);
        if !path.is_absolute() || !roots.iter().any(|root| normalized.starts_with(root)) {
            return Err(CgroupError::NotCgroup2 {
                flag: FLAG,
                path: path.to_owned(),
                example: EXAMPLE,
            });
        }
        normalized
    };
    match naming::all_pods(&found) {
        Some(pods) => Err(CgroupError::NotAllPods {
            flag: FLAG,
            pods: pods.to_owned(),
            path: found,
        }),
        None => Ok(found),
    }
}

/// Removes `.` and `..` from a path that does not exist, so that it can be compared with the mounts, which have no
/// symbolic links.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                normalized.pop();
            }
            other => normalized.push(other),
        }
    }
    normalized
}

fn checked(flag: &'static str, path: &Path, example: &'static str) -> Result<PathBuf, CgroupError> {
    let canonical = path.canonicalize().map_err(io_error(path))?;
    let is_cgroup2 = statfs(&canonical).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC);
    if is_cgroup2 && canonical.is_dir() {
        Ok(canonical)
    } else {
        Err(CgroupError::NotCgroup2 {
            flag,
            path: path.to_owned(),
            example,
        })
    }
}

/// Finds `kubepods`, `kubepods.slice` or a slice named after a parent (`kubelet-kubepods.slice`), at the root or one
/// level below it, as in kind's `kubelet.slice` or in a kubelet's `--cgroup-root`.
fn pods_cgroups_below(root: &Path) -> Vec<PathBuf> {
    let is_pods = |path: &PathBuf| naming::is_of_all_pods(path);
    // These cgroups never contain the pods' cgroup, and are large.
    let is_other = |path: &PathBuf| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        matches!(
            name,
            "system.slice" | "user.slice" | "machine.slice" | "init.scope"
        )
    };
    let (mut found, others): (Vec<_>, Vec<_>) = subdirectories(root).into_iter().partition(is_pods);
    for child in others.into_iter().filter(|child| !is_other(child)) {
        found.extend(subdirectories(&child).into_iter().filter(is_pods));
    }
    found
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Returns device and inode of a directory, which identify it independently of its path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path)
        .ok()
        .map(|metadata| (metadata.dev(), metadata.ino()))
}

/// Returns a cgroup's id, which is its directory's inode number.
fn cgroup_id(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(fs::metadata(path)?.ino())
}

#[cfg(test)]
mod tests;
