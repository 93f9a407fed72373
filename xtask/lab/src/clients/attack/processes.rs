//! Runs one attack in several processes, because a container without privileges cannot raise its limit of descriptors.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::progress::Progress;

/// How often children are checked.
const WATCH_INTERVAL: Duration = Duration::from_millis(10);

/// Child processes that each do a share of the attack. They end with this process.
#[derive(Debug)]
pub struct Processes {
    children: Vec<Pid>,
    done: &'static AtomicU64,
    reported: u64,
}

impl Processes {
    /// Starts the children. Each gets its number and a counter that all share. Must be called before there are threads.
    pub fn start(count: usize, work: impl Fn(usize, &AtomicU64) -> Result<()>) -> Result<Self> {
        let done = shared_counter()?;
        let mut children = Vec::with_capacity(count);
        for number in 0..count {
            // SAFETY: this process has one thread, so the child may call any function.
            match unsafe { libc::fork() } {
                0 => {
                    // SAFETY: takes no pointer.
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                    let code = match work(number, done) {
                        Ok(()) => 0,
                        Err(error) => {
                            eprintln!("attacking process {number}: {error:#}");
                            1
                        }
                    };
                    std::process::exit(code);
                }
                pid if pid > 0 => children.push(Pid::from_raw(pid)),
                _ => return Err(io::Error::last_os_error()).context("fork"),
            }
        }
        Ok(Self {
            children,
            done,
            reported: 0,
        })
    }

    /// Fails if a child has ended.
    pub fn assert_run(&self) -> Result<()> {
        for child in &self.children {
            let status = waitpid(*child, Some(WaitPidFlag::WNOHANG)).context("waitpid")?;
            if status != WaitStatus::StillAlive {
                bail!("an attacking process ended: {status:?}");
            }
        }
        Ok(())
    }

    /// Reports the counter until the time is up.
    pub fn watch(&mut self, counter: &'static str, progress: &Progress, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.assert_run()?;
            let done = self.done.load(Ordering::Relaxed);
            progress.add(counter, done - self.reported);
            self.reported = done;
            std::thread::sleep(WATCH_INTERVAL);
        }
        Ok(())
    }
}

/// Makes a counter in memory that children share.
fn shared_counter() -> Result<&'static AtomicU64> {
    // SAFETY: a new mapping of a page, at no given address.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    ensure!(page != libc::MAP_FAILED, "mmap: {}", io::Error::last_os_error());
    // SAFETY: the page is zeroed, aligned, never unmapped, and used as this only.
    Ok(unsafe { &*page.cast::<AtomicU64>() })
}
