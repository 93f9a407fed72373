//! Reads pods from a directory of manifests, for nodes without an API server, for tests and for trials.
//!
//! The directory is watched. A file that cannot be parsed is reported with the line of the error, and its last good
//! content stays in force. An object that cannot be used is reported and ignored.

pub mod parse;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use self::parse::Objects;
use super::{Inventory, Known, Source};
use crate::telemetry::health::{Condition, Health, Part};

/// The time without a change before files are read, so that no file is read half written.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// The event of closing a file that was open for writing.
const CLOSED_AFTER_WRITE: AccessKind = AccessKind::Close(AccessMode::Write);

/// The interval at which the directory is read even without a notice of a change. Network file systems and a
/// directory that was replaced send no notice.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The reasons why the directory cannot be used.
#[derive(Debug, Error)]
pub enum ManifestsError {
    /// It does not exist, is not a directory, or may not be read.
    #[error("--manifests {path}: {source}; give a directory with Pod manifests (*.yaml, *.yml or *.json)")]
    Directory {
        /// The path in the flag.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The content of the directory when it was last read.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    node: Option<String>,
    files: BTreeMap<PathBuf, FileState>,
    ambiguous: Vec<String>,
    health: Option<Health>,
}

#[derive(Debug, Default)]
struct FileState {
    /// Inode, time of modification (seconds and nanoseconds) and size. At least one of them differs after a change.
    stamp: Option<(u64, i64, i64, u64)>,
    /// The objects of the last successful parse.
    good: Objects,
    /// The error, if the file cannot be parsed now.
    broken: Option<String>,
}

impl Manifests {
    /// Reads the directory. With `node`, pods that are bound to another node are ignored.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn open(dir: &Path, node: Option<String>) -> Result<Self, ManifestsError> {
        let mut manifests = Self {
            dir: dir.to_owned(),
            node,
            files: BTreeMap::new(),
            ambiguous: Vec::new(),
            health: None,
        };
        manifests.refresh().map_err(|source| ManifestsError::Directory {
            path: dir.to_owned(),
            source,
        })?;
        Ok(manifests)
    }

    /// Reads files that have changed, and reports whether any had.
    fn refresh(&mut self) -> io::Result<bool> {
        let mut paths: Vec<PathBuf> = fs::read_dir(&self.dir)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| is_manifest(path))
            .collect();
        paths.sort();
        let before = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        let mut changed = self.files.len() != before;
        for path in paths {
            let state = self.files.entry(path.clone()).or_default();
            let stamp = fs::metadata(&path)
                .ok()
                .map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.len()));
            if stamp.is_some() && stamp == state.stamp {
                continue;
            }
            state.stamp = stamp;
            changed = true;
            match read(&path) {
                Ok(objects) => {
                    for problem in &objects.problems {
                        warn!("{}:{problem}", path.display());
                    }
                    state.good = objects;
                    state.broken = None;
                }
                Err(problem) => {
                    let good = &state.good;
                    let held = good.pods.len() + good.namespaces.len() + good.service_accounts.len();
                    let broken = format!(
                        "{}:{problem}; what this file held before stays in force ({held} objects)",
                        path.display()
                    );
                    error!("{broken}");
                    state.broken = Some(broken);
                }
            }
        }
        Ok(changed)
    }

    /// Returns the inventory of all files.
    pub fn inventory(&self) -> Inventory {
        let files = || self.files.values().map(|file| &file.good);
        let here = |node: &Option<String>| match (&self.node, node) {
            (Some(ours), Some(node)) => ours == node,
            _ => true,
        };
        Inventory::new(
            files()
                .flat_map(|objects| &objects.pods)
                .filter(|pod| here(&pod.node))
                .cloned(),
            files().flat_map(|objects| &objects.namespaces).cloned(),
            files().flat_map(|objects| &objects.service_accounts).cloned(),
        )
    }

    /// Sets the health to which [`Part::Pods`] is reported: whether the directory and its files can be read.
    pub fn reporting_to(mut self, health: Health) -> Self {
        self.health = Some(health);
        self
    }

    /// Returns the condition of the directory and its files. An error only degrades it, because pods are served with
    /// the last good content.
    fn condition(&self, directory: Result<(), &io::Error>) -> Condition {
        let broken: Vec<&str> = self
            .files
            .values()
            .filter_map(|file| file.broken.as_deref())
            .collect();
        match (directory, broken.first()) {
            (Err(error), _) => Condition::Degraded(format!(
                "--manifests {}: {error}; what was read before stays in force",
                self.dir.display()
            )),
            (Ok(()), Some(first)) if broken.len() > 1 => {
                Condition::Degraded(format!("{first}; and {} more files", broken.len() - 1))
            }
            (Ok(()), Some(first)) => Condition::Degraded((*first).to_owned()),
            (Ok(()), None) => Condition::Fine,
        }
    }

    /// Logs which pods share a UID, once for each UID.
    fn report_ambiguous(&mut self, inventory: &Inventory) {
        let mut now = Vec::new();
        for (uid, known) in inventory.pods() {
            if let Known::Ambiguous(names) = known {
                let names = names
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" and ");
                now.push(format!(
                    "UID {uid} is that of {names}; none of them is served until it belongs to one"
                ));
            }
        }
        now.sort();
        for line in now.iter().filter(|line| !self.ambiguous.contains(line)) {
            error!("{}: {line}", self.dir.display());
        }
        self.ambiguous = now;
    }
}

impl Source for Manifests {
    async fn run(mut self, publish: watch::Sender<Arc<Inventory>>) {
        let (heard, mut changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the directory causes events of its own.
            if event.is_ok_and(
                |event| matches!(event.kind, EventKind::Access(kind) if kind != CLOSED_AFTER_WRITE),
            ) {
                return;
            }
            // One pending notice is enough for any number of changes.
            let _ = heard.try_send(());
        })
        .inspect_err(|error| {
            warn!("cannot be notified of changes ({error}); reading the directory every {POLL_INTERVAL:?} instead")
        })
        .ok();
        let mut is_error_logged = false;
        // The content that `open` has read was neither published nor checked for ambiguity yet.
        let mut publish_now = true;
        loop {
            // The directory may have been replaced, so it is watched again. A second watch of the same directory has
            // no effect.
            if let Some(watcher) = &mut watcher {
                let _ = watcher.watch(&self.dir, RecursiveMode::NonRecursive);
            }
            // A file system may hang, and the tasks that answer pods must continue meanwhile.
            let refreshed = tokio::task::block_in_place(|| self.refresh());
            if let Some(health) = &self.health {
                health.set(Part::Pods, self.condition(refreshed.as_ref().map(|_| ())));
            }
            match refreshed {
                Ok(changed) => {
                    if is_error_logged {
                        info!("{} can be read again", self.dir.display());
                    }
                    is_error_logged = false;
                    publish_now |= changed;
                }
                Err(error) => {
                    if !is_error_logged {
                        error!(
                            "{}: {error}; what was read before stays in force",
                            self.dir.display()
                        );
                    }
                    is_error_logged = true;
                }
            }
            if publish_now {
                let inventory = self.inventory();
                self.report_ambiguous(&inventory);
                if publish.send(Arc::new(inventory)).is_err() {
                    return;
                }
                publish_now = false;
            }
            tokio::select! {
                _ = changes.recv() => settle(&mut changes).await,
                () = tokio::time::sleep(POLL_INTERVAL) => {}
            }
        }
    }
}

/// Waits until nothing has changed for [`SETTLE_TIME`], so that no file is read half written.
async fn settle(changes: &mut mpsc::Receiver<()>) {
    let give_up = tokio::time::Instant::now() + POLL_INTERVAL;
    while tokio::time::Instant::now() < give_up
        && matches!(
            tokio::time::timeout(SETTLE_TIME, changes.recv()).await,
            Ok(Some(()))
        )
    {}
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_none_or(|name| name.to_string_lossy().starts_with('.'));
    let ending = path.extension().and_then(|ending| ending.to_str());
    !hidden && matches!(ending, Some("yaml" | "yml" | "json")) && !path.is_dir()
}

fn read(path: &Path) -> Result<Objects, parse::ParseError> {
    let text = fs::read_to_string(path).map_err(|error| parse::ParseError::new(1, error.to_string()))?;
    if path.extension().is_some_and(|ending| ending == "json") {
        parse::json(&text)
    } else {
        parse::yaml(&text)
    }
}

#[cfg(test)]
mod tests;
