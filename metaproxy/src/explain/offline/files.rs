//! The files of `--manifests`.

use std::fs;
use std::path::{Path, PathBuf};

use super::OfflineError;

/// The file itself, or all manifests below a directory.
pub(super) fn files(path: &Path) -> Result<Vec<PathBuf>, OfflineError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = |source| OfflineError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?.path();
        let is_manifest = entry
            .extension()
            .and_then(|extension| extension.to_str())
            .is_some_and(|extension| ["yaml", "yml", "json"].contains(&extension));
        if entry.is_dir() {
            found.extend(files(&entry)?);
        } else if is_manifest {
            found.push(entry);
        }
    }
    found.sort();
    Ok(found)
}
