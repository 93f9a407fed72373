//! The counters of an attack.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the counters are printed.
const PRINT_INTERVAL: Duration = Duration::from_millis(50);

/// Counters of an attack, by name.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Progress {
    /// Starts to print the counters.
    pub fn start() -> Self {
        let progress = Self::default();
        let printed = progress.clone();
        std::thread::spawn(move || {
            while printed.print().is_ok() {
                std::thread::sleep(PRINT_INTERVAL);
            }
        });
        progress
    }

    /// Adds to a counter.
    pub fn add(&self, counter: &'static str, count: u64) {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry(counter).or_default() += count;
    }

    fn print(&self) -> io::Result<()> {
        let counters = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&counters)?)?;
        out.flush()
    }
}

/// Limits the rate of a loop.
#[derive(Debug)]
pub struct Pace {
    begun: Instant,
    done: u64,
    rate: u64,
}

impl Pace {
    /// Limits a loop to this many turns a second.
    pub fn new(rate: u64) -> Self {
        Self {
            begun: Instant::now(),
            done: 0,
            rate,
        }
    }

    /// Waits until the next turn is due. A late turn is not made up for.
    pub fn wait(&mut self) {
        self.done += 1;
        let due = self.begun + Duration::from_nanos(self.done * 1_000_000_000 / self.rate);
        let now = Instant::now();
        if due > now + Duration::from_millis(1) {
            std::thread::sleep(due - now);
        } else if now > due + Duration::from_millis(100) {
            *self = Self::new(self.rate);
        }
    }
}
