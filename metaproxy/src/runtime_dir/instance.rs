//! Registers an agent or guard with the other metaproxy processes of the node.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use metaproxy_common::CONTRACT;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use super::{atomic_file, served_marker};

/// The reasons why an instance must not start.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// Another process runs on this node, and its version's programs are not compatible with the programs of this
    /// version.
    #[error(
        "metaproxy {version} ({what}, pid {pid}) runs on this node with interception contract {theirs}, and this is \
         {} with contract {CONTRACT}: side by side, pods would be refused or reach the node's metadata service. Stop it \
         first: with the chart, delete the DaemonSets of agent and guard; \
         a guard of the node's own with `systemctl stop metaproxy-guard`", env!("CARGO_PKG_VERSION")
    )]
    OtherContract {
        /// The version of the other process.
        version: String,
        /// The kind of the other process.
        what: String,
        /// The id of the other process, in its own PID namespace.
        pid: u32,
        /// The interception contract of the other process.
        theirs: u32,
    },
    /// The directory or a file in it cannot be used.
    #[error("--runtime-dir: cannot use {path}: {source}")]
    Io {
        /// The path that cannot be used.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> InstanceError {
    let path = path.to_owned();
    move |source| InstanceError::Io { path, source }
}

/// The information that a process writes about itself for the other processes.
#[derive(Debug, Serialize, Deserialize)]
struct Registration {
    contract: u32,
    version: String,
    what: String,
    pid: u32,
}

/// The prefix of the names of instances' files.
const FILE_PREFIX: &str = "instance-";

/// The registration of this process. Dropping it removes the registration.
///
/// The file is locked while the process lives. A file that is not locked was left by a process that was killed.
#[derive(Debug)]
pub struct Instance {
    /// The file and its path. `None` if the file system is full. In this case other processes do not see this
    /// process.
    file: Option<(PathBuf, File)>,
}

impl Instance {
    /// Registers this process, and checks that it may run at the same time as the others.
    ///
    /// # Errors
    /// [`InstanceError::OtherContract`] if this process must not run at the same time as another one.
    pub fn register(runtime_dir: &Path, what: &str) -> Result<Self, InstanceError> {
        let registration = Registration {
            contract: CONTRACT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            what: what.to_owned(),
            pid: std::process::id(),
        };
        Self::with_registration(runtime_dir, &registration)
    }

    fn with_registration(runtime_dir: &Path, registration: &Registration) -> Result<Self, InstanceError> {
        let path = runtime_dir.join(format!("{FILE_PREFIX}{:016x}.json", fastrand::u64(..)));
        let content = serde_json::to_vec(registration).map_err(io::Error::from);
        let own = match content.and_then(|content| atomic_file::write_locked(&path, &content)) {
            Ok(file) => Self {
                file: Some((path, file)),
            },
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                warn!(
                    "other versions of metaproxy on this node do not see this one: cannot write {}: {error}",
                    path.display()
                );
                Self { file: None }
            }
            Err(error) => return Err(io_error(&path)(error)),
        };
        own.check_others(runtime_dir)?;
        Ok(own)
    }

    /// Returns whether another process of this node is of the kind `what`.
    pub fn is_beside(&self, runtime_dir: &Path, what: &str) -> bool {
        let entries = fs::read_dir(runtime_dir).into_iter().flatten();
        entries.filter_map(Result::ok).any(|entry| {
            let path = entry.path();
            let is_own = self.file.as_ref().is_some_and(|(own, _)| *own == path);
            let is_live = || {
                let file = File::open(&path);
                file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
            };
            let registration = || serde_json::from_slice::<Registration>(&fs::read(&path).ok()?).ok();
            !is_own && registration().is_some_and(|registration| registration.what == what) && is_live()
        })
    }

    fn check_others(&self, runtime_dir: &Path) -> Result<(), InstanceError> {
        for entry in fs::read_dir(runtime_dir).map_err(io_error(runtime_dir))? {
            let path = entry.map_err(io_error(runtime_dir))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            for prefix in [FILE_PREFIX, served_marker::FILE_PREFIX] {
                atomic_file::remove_stale(&path, prefix);
            }
            if !name.starts_with(FILE_PREFIX) || self.file.as_ref().is_some_and(|(own, _)| *own == path) {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            // The lock is shared, because other processes may check at the same time.
            match file.try_lock_shared() {
                // The process that wrote the file is gone.
                Ok(()) => drop(fs::remove_file(&path)),
                Err(TryLockError::WouldBlock) => check(&path)?,
                Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
            }
        }
        Ok(())
    }
}

fn check(path: &Path) -> Result<(), InstanceError> {
    let text = fs::read(path).unwrap_or_default();
    // If the registration of another process cannot be read yet, that process checks ours after it has written its
    // own.
    let Ok(registration) = serde_json::from_slice::<Registration>(&text) else {
        return Ok(());
    };
    if registration.contract == CONTRACT {
        return Ok(());
    }
    Err(InstanceError::OtherContract {
        version: registration.version,
        what: registration.what,
        pid: registration.pid,
        theirs: registration.contract,
    })
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.file {
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration(contract: u32) -> Registration {
        Registration {
            contract,
            version: "9.9.9".to_owned(),
            what: "guard".to_owned(),
            pid: 7,
        }
    }

    #[test]
    fn only_processes_with_the_same_contract_run_at_the_same_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = Instance::register(dir.path(), "agent").unwrap();
        let second = Instance::register(dir.path(), "guard").unwrap();
        drop((first, second));
        let other = Instance::with_registration(dir.path(), &registration(CONTRACT + 1));
        let other = other.unwrap();
        let error = Instance::register(dir.path(), "agent").unwrap_err().to_string();
        assert!(
            error.contains("metaproxy 9.9.9 (guard, pid 7)") && error.contains("Stop it first"),
            "{error}"
        );
        drop(other);
        drop(Instance::register(dir.path(), "agent").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn the_registration_of_a_killed_process_is_removed_and_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("instance-dead.json");
        fs::write(&left, serde_json::to_vec(&registration(CONTRACT + 1)).unwrap()).unwrap();
        let _own = Instance::register(dir.path(), "agent").unwrap();
        assert!(!left.exists());
    }
}
