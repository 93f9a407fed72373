//! Makes the runtime directory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The error of a runtime directory that cannot be made.
#[derive(Debug, Error)]
#[error("--runtime-dir: cannot make {path}: {source}")]
pub struct RuntimeDirError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the runtime directory (0700) if it does not exist.
///
/// # Errors
/// If the directory cannot be made.
pub fn make_runtime_dir(path: &Path) -> Result<(), RuntimeDirError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| {
        let path = path.to_owned();
        RuntimeDirError { path, source }
    })
}
