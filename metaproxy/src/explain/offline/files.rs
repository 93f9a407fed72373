//! Finds the files of `--manifests`.

use std::fs;
use std::path::{Path, PathBuf};

use super::OfflineError;

/// The files at `--manifests`.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// The manifests.
    pub read: Vec<PathBuf>,
    /// Files of a directory with other endings, which kubectl skips too.
    pub left_out: Vec<PathBuf>,
}

/// Returns the file itself, or all files below a directory.
pub(super) fn files(path: &Path) -> Result<Files, OfflineError> {
    let mut found = Files::default();
    if path.is_dir() {
        add(path, &mut found)?;
    } else {
        found.read.push(path.to_owned());
    }
    found.read.sort();
    found.left_out.sort();
    Ok(found)
}

fn add(dir: &Path, found: &mut Files) -> Result<(), OfflineError> {
    let unreadable = |source| OfflineError::Unreadable {
        path: dir.to_owned(),
        source,
    };
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let is_manifest = entry
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        if entry.is_dir() {
            add(&entry, found)?;
        } else if is_manifest {
            found.read.push(entry);
        } else {
            found.left_out.push(entry);
        }
    }
    Ok(())
}
