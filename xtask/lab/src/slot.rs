//! How many labs there are on this machine at the same time.
//!
//! A lab waits most of its time, so several may stand side by side. A test that measures time or load, or that changes
//! what all labs share, takes the machine for itself instead.

use std::fs::{File, TryLockError};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// More labs than this are never side by side. It is the same number in every process, because a lab that wants to be
/// alone takes all slots.
const MAX_SLOTS: usize = 16;

/// How often a lab looks for a free slot: flock(2) waits for one file, and any slot will do.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A lab's permission to be there, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "its locks end when the files are closed")] Vec<File>);

impl Slot {
    /// Waits for any slot.
    ///
    /// # Errors
    /// If the files of the locks cannot be made.
    pub(super) fn any() -> Result<Self> {
        // Labs get their slots in the order in which they ask, so that one that wants to be alone is not overtaken for
        // ever.
        let _turn = lock("turn")?;
        let count = slots();
        loop {
            for number in 0..count {
                let file = open(&slot_name(number))?;
                match file.try_lock() {
                    Ok(()) => return Ok(Self(vec![file])),
                    Err(TryLockError::WouldBlock) => {}
                    Err(TryLockError::Error(error)) => {
                        return Err(error).context("cannot take a slot for a lab");
                    }
                }
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// Waits until no other lab is there, and keeps others from being made.
    ///
    /// # Errors
    /// If the files of the locks cannot be made.
    pub(super) fn all() -> Result<Self> {
        let _turn = lock("turn")?;
        let files = (0..MAX_SLOTS).map(|number| lock(&slot_name(number)));
        Ok(Self(files.collect::<Result<_>>()?))
    }
}

/// The number of slots unless `METAPROXY_LAB_SLOTS` says another.
const DEFAULT_SLOTS: usize = 2;

fn slots() -> usize {
    let given = std::env::var_os("METAPROXY_LAB_SLOTS");
    let count = given.and_then(|text| text.to_str()?.parse().ok());
    count.unwrap_or(DEFAULT_SLOTS).clamp(1, MAX_SLOTS)
}

fn slot_name(number: usize) -> String {
    format!("slot-{number}")
}

/// Waits for a lock, which is held until the file is closed.
pub(super) fn lock(name: &str) -> Result<File> {
    let file = open(name)?;
    file.lock()
        .with_context(|| format!("cannot wait for the lock `{name}` of the labs"))?;
    Ok(file)
}

fn open(name: &str) -> Result<File> {
    let path = std::env::temp_dir().join(format!("metaproxy-lab.{name}"));
    File::create(&path).with_context(|| format!("cannot make {}", path.display()))
}
