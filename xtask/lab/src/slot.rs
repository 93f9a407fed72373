//! Limits how many labs run on this machine at the same time.
//!
//! A lab waits most of the time, so several labs may run in parallel. A test that measures time or load, or that
//! changes state that all labs share, takes all slots of the machine instead.

use std::fs::{File, TryLockError};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// The maximum number of labs that run in parallel. It is the same number in every process, because a lab that must
/// run alone takes all slots.
const MAX_SLOTS: usize = 16;

/// The time between two attempts to find a free slot. flock(2) can wait only for one file, but a lab can use any
/// slot.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The permission of a lab to run. Dropping it frees its slots.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "its locks end when the files are closed")] Vec<File>);

impl Slot {
    /// Waits for any slot.
    ///
    /// # Errors
    /// If the lock files cannot be made.
    pub(super) fn any() -> Result<Self> {
        // Labs get their slots in the order of their requests. Otherwise other labs could forever overtake a lab that
        // must run alone.
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

    /// Waits until no other lab runs, and keeps other labs from starting.
    ///
    /// # Errors
    /// If the lock files cannot be made.
    pub(super) fn all() -> Result<Self> {
        let _turn = lock("turn")?;
        let files = (0..MAX_SLOTS).map(|number| lock(&slot_name(number)));
        Ok(Self(files.collect::<Result<_>>()?))
    }
}

/// The number of slots if `METAPROXY_LAB_SLOTS` does not set another number.
const DEFAULT_SLOTS: usize = 2;

fn slots() -> usize {
    let given = std::env::var_os("METAPROXY_LAB_SLOTS");
    let count = given.and_then(|text| text.to_str()?.parse().ok());
    count.unwrap_or(DEFAULT_SLOTS).clamp(1, MAX_SLOTS)
}

fn slot_name(number: usize) -> String {
    format!("slot-{number}")
}

/// Waits for a lock. The lock is held until the returned file is closed.
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
