//! Finds the cgroup of this process. The program that verifies callers is attached to it, because the kernel runs the
//! programs of the cgroup in which a socket was created.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use procfs::ProcessCGroups;
use procfs::process::Process;

use super::{CgroupError, io_error, subdirectories};

/// The maximum number of levels below a mount at which the cgroup of this process is looked for.
const MAX_DEPTH: u8 = 12;

/// The cgroup of this process, with its open directory.
#[derive(Debug)]
pub struct OwnCgroup {
    path: PathBuf,
    dir: File,
}

impl OwnCgroup {
    /// Finds the cgroup of this process below one of the cgroup2 mounts.
    ///
    /// A container usually has a cgroup namespace of its own, in which `/proc/self/cgroup` shows a path that is
    /// relative to the container's cgroup. Then all cgroups are searched for this process.
    ///
    /// # Errors
    /// [`CgroupError::OwnNotFound`], or [`CgroupError::Io`] if the cgroup cannot be opened.
    pub fn find(mounts: &[PathBuf]) -> Result<Self, CgroupError> {
        let cgroups = Process::myself().and_then(|process| process.cgroups()).ok();
        let shown = cgroups.as_ref().and_then(cgroup2_path);
        let by_path = mounts
            .iter()
            .filter_map(|mount| Some(mount.join(shown?.trim_start_matches('/'))))
            .find(|path| lists_this_process(path));
        let path = by_path
            .or_else(|| mounts.iter().find_map(|mount| search(mount, MAX_DEPTH)))
            .ok_or_else(|| CgroupError::OwnNotFound(mounts.to_vec()))?;
        let dir = File::open(&path).map_err(io_error(&path))?;
        Ok(Self { path, dir })
    }

    /// Returns the absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the id, which is the inode number of the directory (`cgroup_id`, include/linux/cgroup.h).
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn id(&self) -> Result<u64, CgroupError> {
        self.dir
            .metadata()
            .map(|metadata| metadata.ino())
            .map_err(io_error(&self.path))
    }

    /// Returns the open directory, to which programs can be attached.
    pub fn dir(&self) -> &File {
        &self.dir
    }
}

/// Returns the path in the cgroup v2 hierarchy, which has the number 0 (cgroups(7)).
fn cgroup2_path(cgroups: &ProcessCGroups) -> Option<&str> {
    let mut cgroups = cgroups.into_iter();
    cgroups
        .find(|cgroup| cgroup.hierarchy == 0)
        .map(|cgroup| cgroup.pathname.as_str())
}

/// Reports whether this process runs in a cgroup, or in one at most `depth` levels below it.
pub fn holds_this_process(cgroup: &Path, depth: u8) -> bool {
    search(cgroup, depth).is_some()
}

/// Reports whether a cgroup itself has this process. `cgroup.procs` shows processes of other PID namespaces as 0, so
/// a match can only be this process.
fn lists_this_process(cgroup: &Path) -> bool {
    let own = std::process::id().to_string();
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .is_ok_and(|processes| processes.lines().any(|pid| pid == own))
}

fn search(dir: &Path, depth: u8) -> Option<PathBuf> {
    if lists_this_process(dir) {
        return Some(dir.to_owned());
    }
    let depth = depth.checked_sub(1)?;
    subdirectories(dir).iter().find_map(|child| search(child, depth))
}

#[cfg(test)]
mod tests {
    use super::*;
    use procfs::FromBufRead as _;

    #[test]
    fn the_path_in_the_hybrid_hierarchy_is_that_of_version_2() {
        let read = |text: &str| ProcessCGroups::from_buf_read(text.as_bytes()).unwrap();
        let hybrid = read("5:cpu:/a\n1:name=systemd:/b\n0::/kubepods/pod1/cri:c\n");
        assert_eq!(cgroup2_path(&hybrid), Some("/kubepods/pod1/cri:c"));
        assert_eq!(cgroup2_path(&read("5:cpu:/a\n")), None);
    }

    #[test]
    fn a_process_is_found_wherever_its_cgroup_is_below_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        let own = mount.path().join("kubepods/burstable/pod1/container");
        fs::create_dir_all(&own).unwrap();
        fs::create_dir_all(mount.path().join("system")).unwrap();
        fs::write(mount.path().join("system/cgroup.procs"), "0\n1\n").unwrap();
        assert!(matches!(
            OwnCgroup::find(&[mount.path().to_owned()]),
            Err(CgroupError::OwnNotFound(_))
        ));
        fs::write(own.join("cgroup.procs"), format!("0\n{}\n", std::process::id())).unwrap();
        let found = OwnCgroup::find(&[mount.path().to_owned()]).unwrap();
        assert_eq!(found.path(), own);
    }
}
