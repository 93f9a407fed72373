//! Removes what labs have left that were killed before they could clean up.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::netns::ip;
use super::{PREFIX, cgroup2_mount, kill_all_in, remove_cgroup};

/// The directory in which `ip netns` keeps its namespaces (ip-netns(8)).
const NAMESPACES: &str = "/run/netns";

/// A lab's directory. It is locked while the process that made the lab lives, so that other processes know that the
/// lab is in use.
#[derive(Debug)]
pub(super) struct OwnedDir {
    path: PathBuf,
    _lock: File,
}

impl OwnedDir {
    /// Makes the directory. The caller holds the lock under which remains are removed.
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let lock = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        lock.try_lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for OwnedDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes cgroups, network namespaces and directories of labs whose process has ended.
///
/// # Errors
/// If a network namespace cannot be deleted, or no cgroup v2 is mounted.
pub(super) fn remove() -> Result<()> {
    let temporary = std::env::temp_dir();
    let live = live_labs(&temporary);
    for cgroup in remains_in(&cgroup2_mount()?, &live) {
        kill_all_in(&cgroup);
        remove_cgroup(&cgroup);
    }
    for netns in remains_in(Path::new(NAMESPACES), &live) {
        let name = netns.file_name().unwrap_or_default().to_string_lossy();
        let deleted = ip(&["netns", "delete", &name]);
        // A lab that ends has deleted it in the meantime.
        if netns.exists() {
            deleted?;
        }
    }
    for dir in remains_in(&temporary, &live) {
        let _ = fs::remove_dir_all(dir);
    }
    Ok(())
}

/// Returns the names of the labs whose process still lives.
fn live_labs(temporary: &Path) -> BTreeSet<String> {
    let is_locked = |path: &Path| File::open(path).is_ok_and(|dir| dir.try_lock_shared().is_err());
    let dirs = entries(temporary).filter(|path| is_locked(path));
    dirs.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect()
}

/// Lists the files of a directory that are named after a lab that is not live.
fn remains_in(dir: &Path, live: &BTreeSet<String>) -> Vec<PathBuf> {
    let is_in_use = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        live.iter().any(|lab| is_of_lab(&name, lab))
    };
    entries(dir).filter(|path| !is_in_use(path)).collect()
}

/// Returns whether a name is that of a lab, or begins with the lab's name and `-`.
fn is_of_lab(name: &str, lab: &str) -> bool {
    name.strip_prefix(lab)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX))
        .map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_live_labs_things_are_its_own_and_no_others() {
        for (name, is_its_own) in [
            ("mplab-7-1", true),
            ("mplab-7-1-node", true),
            ("mplab-7-1-agents", true),
            ("mplab-7-10", false),
            ("mplab-7-10-node", false),
            ("mplab-7", false),
            ("mplab-71-1", false),
        ] {
            assert_eq!(is_of_lab(name, "mplab-7-1"), is_its_own, "{name}");
        }
    }

    #[test]
    fn only_what_no_live_process_owns_remains() {
        let temporary = std::env::temp_dir().join(format!("lab-remains-{}", std::process::id()));
        let owned = OwnedDir::new(temporary.join(format!("{PREFIX}1-1"))).unwrap();
        for name in [
            format!("{PREFIX}1-1-node"),
            format!("{PREFIX}1-2"),
            "other".to_owned(),
        ] {
            fs::create_dir(temporary.join(name)).unwrap();
        }
        let live = live_labs(&temporary);
        assert_eq!(live, BTreeSet::from([format!("{PREFIX}1-1")]));
        assert_eq!(
            remains_in(&temporary, &live),
            [temporary.join(format!("{PREFIX}1-2"))]
        );
        drop(owned);
        assert_eq!(remains_in(&temporary, &live_labs(&temporary)).len(), 2);
        fs::remove_dir_all(&temporary).unwrap();
    }
}
