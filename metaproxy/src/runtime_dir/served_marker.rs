//! The marker that shows that pods have been served since the node booted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::atomic_file;

/// The prefix of the marker's temporary files. Earlier versions use the same prefix.
pub(super) const FILE_PREFIX: &str = "served-";

const FILE_NAME: &str = "served-since-boot";

/// The marker file. It exists if pods have been served since the node booted, and guards close when it appears.
#[derive(Clone, Debug)]
pub struct ServedMarker {
    path: PathBuf,
    boot: String,
}

impl ServedMarker {
    /// Returns the marker of a runtime directory. Does not set it.
    pub fn of(runtime_dir: &Path) -> Self {
        // A marker from before a reboot must not close a guard. If the boot id cannot be read, any marker counts.
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            path: runtime_dir.join(FILE_NAME),
            boot,
        }
    }

    /// Sets the marker, because pods are served.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set(&self) -> io::Result<()> {
        if self.is_set().is_ok_and(|is_set| is_set) {
            return Ok(());
        }
        atomic_file::write(&self.path, self.boot.as_bytes())
    }

    /// Removes the marker, so that guards open and pods reach the node's metadata service again.
    pub fn clear(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => warn!(
                "guards on this node stay closed: cannot remove {}: {error}",
                self.path.display()
            ),
            _ => {}
        }
    }

    /// Returns whether pods have been served since boot.
    ///
    /// # Errors
    /// If the file exists and cannot be read.
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

    #[test]
    fn only_a_marker_of_this_boot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let mark = ServedMarker::of(dir.path());
        assert!(!mark.is_set().unwrap());
        mark.clear();
        mark.set().unwrap();
        assert!(mark.is_set().unwrap());
        fs::write(dir.path().join(FILE_NAME), "another boot").unwrap();
        assert!(!mark.is_set().unwrap());
        mark.set().unwrap();
        assert!(mark.is_set().unwrap());
        mark.clear();
        assert!(!mark.is_set().unwrap());
    }
}
