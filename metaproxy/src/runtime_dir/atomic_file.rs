//! Writes files atomically: a file is written under a temporary name and then renamed.
//!
//! `tempfile` would add a dependency to the binary, and it does not remove temporary files after a SIGKILL. Here the
//! temporary files have names that the next process recognizes.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The age from which a temporary file counts as left by a killed process. Writing a file takes milliseconds.
const STALE_AGE: Duration = Duration::from_secs(60);

/// Returns a temporary path in the same directory as a path. Its name is random, because the process id is 1 in every
/// container and would not be unique.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{:016x}.new", fastrand::u64(..)))
}

/// Writes a file with mode 0600. Readers see either the old content or the new content.
///
/// # Errors
/// If the file cannot be written or renamed. In this case the temporary file is removed.
pub(crate) fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    publish(path, content, |_| Ok(())).map(drop)
}

/// Writes a file that is locked before other processes can see it. Returns the file with its lock.
///
/// # Errors
/// If the file cannot be written, locked or renamed. In this case the temporary file is removed.
pub(crate) fn write_locked(path: &Path, content: &[u8]) -> io::Result<File> {
    publish(path, content, File::lock)
}

fn publish(path: &Path, content: &[u8], prepare: impl Fn(&File) -> io::Result<()>) -> io::Result<File> {
    let temporary = temporary(path);
    let created = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary);
    let written = created.and_then(|mut file| {
        prepare(&file)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)?;
        Ok(file)
    });
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file if it is a temporary file that a killed process left, and its name begins with the prefix.
///
/// Earlier versions wrote temporary files without the dot. A young file is kept, because another process may be about
/// to rename it.
pub(crate) fn remove_stale(entry: &Path, prefix: &str) {
    let name = entry.file_name().unwrap_or_default().to_string_lossy();
    let is_temporary = match name.strip_prefix('.') {
        Some(name) => name.starts_with(prefix),
        None => name.starts_with(prefix) && name.ends_with(".new"),
    };
    let is_old = || {
        let modified = fs::metadata(entry).and_then(|file| file.modified());
        modified.is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > STALE_AGE))
    };
    if is_temporary && is_old() {
        let _ = fs::remove_file(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    #[test]
    fn a_temporary_file_is_removed_only_if_it_is_old_and_has_the_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let old = [
            ".instance-a.json.new",
            "instance-a.new",
            "instance-a.json",
            ".other.new",
        ];
        for name in old.iter().chain(&[".instance-b.json.new"]) {
            File::create(path(name)).unwrap();
        }
        for name in old {
            let file = File::options().write(true).open(path(name)).unwrap();
            file.set_modified(SystemTime::now() - STALE_AGE * 2).unwrap();
        }
        for entry in fs::read_dir(dir.path()).unwrap() {
            remove_stale(&entry.unwrap().path(), "instance-");
        }
        let left = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.collect();
        left.sort();
        assert_eq!(left, [".instance-b.json.new", ".other.new", "instance-a.json"]);
    }

    #[test]
    fn a_file_is_replaced_and_no_temporary_file_remains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for content in ["old", "new"] {
            write(&path, content.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert!(write(&dir.path().join("none/file"), b"").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
