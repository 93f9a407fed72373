//! What our processes on one node tell each other through the runtime directory: that they are there, and that pods
//! have been served since the node booted.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use metaproxy_common::CONTRACT;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

/// The runtime directory can't be made.
#[derive(Debug, Error)]
#[error("--runtime-dir: cannot make {path}: {source}")]
pub struct RuntimeDirError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the runtime directory (0700) where it does not exist.
///
/// # Errors
/// Where the system refuses.
pub fn make_runtime_dir(path: &Path) -> Result<(), RuntimeDirError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| {
        let path = path.to_owned();
        RuntimeDirError { path, source }
    })
}

/// Another contract stands beside ours, or the directory can't be used.
#[derive(Debug, Error)]
pub enum NeighbourError {
    /// A process of another version whose programs do not go with ours.
    #[error(
        "metaproxy {version} ({what}, pid {pid}) runs on this node with interception contract {theirs}, and this is \
         {} with contract {CONTRACT}: side by side, pods would be refused or reach the node's metadata service. Stop it \
         first: with the chart, delete the DaemonSets of agent and guard; \
         a guard of the node's own with `systemctl stop metaproxy-guard`", env!("CARGO_PKG_VERSION")
    )]
    OtherContract {
        /// Its version.
        version: String,
        /// What it is.
        what: String,
        /// Its process, as it sees itself.
        pid: u32,
        /// Its contract.
        theirs: u32,
    },
    /// The directory or a file in it.
    #[error("--runtime-dir: cannot use {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> NeighbourError {
    let path = path.to_owned();
    move |source| NeighbourError::Io { path, source }
}

/// What a process says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Card {
    contract: u32,
    version: String,
    what: String,
    pid: u32,
}

const PREFIX: &str = "instance-";

const MARK: &str = "served-since-boot";
const ASIDE: &str = "served-";

/// Nobody takes so long to write one.
const SETTLED: Duration = Duration::from_secs(60);

/// This process, as others see it, until it is dropped. The file is locked for as long as the process lives: one that
/// is not locked was left by a process that was killed.
#[derive(Debug)]
pub struct Presence {
    /// None where the file system is full: others do not see this process then.
    file: Option<(PathBuf, File)>,
}

impl Presence {
    /// Says that this process is there, and looks who else is.
    ///
    /// # Errors
    /// [`NeighbourError::OtherContract`] where this process must not run beside another.
    pub fn announce(runtime_dir: &Path, what: &str) -> Result<Self, NeighbourError> {
        let card = Card {
            contract: CONTRACT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            what: what.to_owned(),
            pid: std::process::id(),
        };
        Self::with_card(runtime_dir, &card)
    }

    fn with_card(runtime_dir: &Path, card: &Card) -> Result<Self, NeighbourError> {
        let name = format!("{PREFIX}{:016x}.json", fastrand::u64(..));
        let (aside, path) = (runtime_dir.join(format!(".{name}")), runtime_dir.join(name));
        // Locked and whole before anybody can see it.
        let written = File::create_new(&aside).and_then(|mut file| {
            file.lock()?;
            file.write_all(&serde_json::to_vec(card)?)?;
            fs::rename(&aside, &path)?;
            Ok(file)
        });
        let own = match written {
            Ok(file) => Self {
                file: Some((path, file)),
            },
            Err(error) => {
                let _ = fs::remove_file(&aside);
                if error.kind() != io::ErrorKind::StorageFull {
                    return Err(io_error(&path)(error));
                }
                warn!(
                    "other versions of metaproxy on this node do not see this one: cannot write {}: {error}",
                    path.display()
                );
                Self { file: None }
            }
        };
        own.look_round(runtime_dir)?;
        Ok(own)
    }

    /// Whether another process of this node says that it is this.
    pub fn is_beside(&self, runtime_dir: &Path, what: &str) -> bool {
        let entries = fs::read_dir(runtime_dir).into_iter().flatten();
        entries.filter_map(Result::ok).any(|entry| {
            let path = entry.path();
            let is_own = self.file.as_ref().is_some_and(|(own, _)| *own == path);
            let is_live = || {
                let file = File::open(&path);
                file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
            };
            let card = || serde_json::from_slice::<Card>(&fs::read(&path).ok()?).ok();
            !is_own && card().is_some_and(|card| card.what == what) && is_live()
        })
    }

    fn look_round(&self, runtime_dir: &Path) -> Result<(), NeighbourError> {
        for entry in fs::read_dir(runtime_dir).map_err(io_error(runtime_dir))? {
            let path = entry.map_err(io_error(runtime_dir))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            // One that was just made aside is not locked yet.
            let is_left_aside = name.starts_with('.')
                && (name.contains(PREFIX) || name.contains(ASIDE))
                && fs::metadata(&path)
                    .and_then(|file| file.modified())
                    .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > SETTLED));
            if is_left_aside {
                let _ = fs::remove_file(&path);
            }
            if !name.starts_with(PREFIX) || self.file.as_ref().is_some_and(|(own, _)| *own == path) {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            // Shared: others may be looking at the same moment.
            match file.try_lock_shared() {
                // Whoever wrote it is gone.
                Ok(()) => drop(fs::remove_file(&path)),
                Err(TryLockError::WouldBlock) => check(&path)?,
                Err(TryLockError::Error(error)) => return Err(io_error(&path)(error)),
            }
        }
        Ok(())
    }
}

fn check(path: &Path) -> Result<(), NeighbourError> {
    let text = fs::read(path).unwrap_or_default();
    // One that is being written is looked at by its own process, which finds us.
    let Ok(card) = serde_json::from_slice::<Card>(&text) else {
        return Ok(());
    };
    if card.contract == CONTRACT {
        return Ok(());
    }
    Err(NeighbourError::OtherContract {
        version: card.version,
        what: card.what,
        pid: card.pid,
        theirs: card.contract,
    })
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.file {
            let _ = fs::remove_file(path);
        }
    }
}

/// The mark that pods have been served since the node booted, at which guards close.
#[derive(Clone, Debug)]
pub struct ServedMark {
    path: PathBuf,
    boot: String,
}

impl ServedMark {
    /// In this runtime directory.
    pub fn of(runtime_dir: &Path) -> Self {
        // A directory that survives a boot (it should not) must not close a guard. Without an id, any mark counts.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            path: runtime_dir.join(MARK),
            boot,
        }
    }

    /// Pods are served.
    ///
    /// # Errors
    /// Where that can't be written.
    pub fn set(&self) -> io::Result<()> {
        if self.is_set().is_ok_and(|is_set| is_set) {
            return Ok(());
        }
        let aside = self
            .path
            .with_file_name(format!(".{ASIDE}{:016x}.new", fastrand::u64(..)));
        let written = fs::write(&aside, &self.boot).and_then(|()| fs::rename(&aside, &self.path));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }

    /// Pods are to reach the node's metadata service again.
    pub fn clear(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(
                "guards on this node stay closed: cannot remove {}: {error}",
                self.path.display()
            ),
            _ => {}
        }
    }

    /// Whether pods have been served since boot.
    ///
    /// # Errors
    /// Where that can't be told.
    pub fn is_set(&self) -> io::Result<bool> {
        match fs::read_to_string(&self.path) {
            Ok(boot) => Ok(boot == self.boot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(contract: u32) -> Card {
        Card {
            contract,
            version: "9.9.9".to_owned(),
            what: "guard".to_owned(),
            pid: 7,
        }
    }

    #[test]
    fn processes_of_one_contract_stand_beside_each_other_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let first = Presence::announce(dir.path(), "agent").unwrap();
        let second = Presence::announce(dir.path(), "guard").unwrap();
        drop((first, second));
        let other = Presence::with_card(dir.path(), &card(CONTRACT + 1));
        let other = other.unwrap();
        let error = Presence::announce(dir.path(), "agent").unwrap_err().to_string();
        assert!(
            error.contains("metaproxy 9.9.9 (guard, pid 7)") && error.contains("Stop it first"),
            "{error}"
        );
        drop(other);
        drop(Presence::announce(dir.path(), "agent").unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join("instance-dead.json");
        fs::write(&left, serde_json::to_vec(&card(CONTRACT + 1)).unwrap()).unwrap();
        let _own = Presence::announce(dir.path(), "agent").unwrap();
        assert!(!left.exists());
    }

    #[test]
    fn the_mark_is_that_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        let mark = ServedMark::of(dir.path());
        assert!(!mark.is_set().unwrap());
        mark.clear();
        mark.set().unwrap();
        assert!(mark.is_set().unwrap());
        fs::write(dir.path().join("served-since-boot"), "another boot").unwrap();
        assert!(!mark.is_set().unwrap());
        mark.set().unwrap();
        assert!(mark.is_set().unwrap());
        mark.clear();
        assert!(!mark.is_set().unwrap());
    }
}
