//! What runs in the guest as its first process.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use xtask::lab::netns::ip;

use super::initramfs::{MODULES, PROGRAMS};
use super::{EXIT, QUICK, QUICK_WHOLE, QUICK_WORD};

/// The initial network namespace, as the lab calls it.
const NODE: &str = "node";

/// What sizes of attacks are divided by: without hardware virtualisation the guest is slow.
const DIVISOR: &str = "100";

/// Whether this process is the first of such a guest.
pub fn is_guest() -> bool {
    std::process::id() == 1 && Path::new(PROGRAMS).exists()
}

/// Sets the guest up, runs the tests, and ends it.
pub fn run() {
    let status = match set_up().and_then(|()| tests()) {
        Ok(status) => status,
        Err(error) => {
            println!("the guest could not be set up: {error:#}");
            99
        }
    };
    println!("{EXIT} {status}");
    // QEMU ends where the guest starts again; nothing is to be kept.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
}

fn set_up() -> Result<()> {
    for (kind, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {at}"))?;
    }
    // Nothing is mounted there: the workspace may lie below it, and all of it is in memory anyway.
    std::fs::create_dir_all("/tmp")?;
    for module in in_order(MODULES)? {
        load_module(&module)?;
    }
    ip(&["link", "set", "lo", "up"])?;
    // The lab calls its namespaces by name.
    ip(&["netns", "attach", NODE, "1"])
}

fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::default();
    // SAFETY: the parameters live through the call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result < 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| format!("loading {}", path.display()));
    }
    Ok(())
}

/// The files of a directory, by name.
fn in_order(directory: &str) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

/// Runs the test programs with the words that the kernel did not know; the exit status of the first that fails.
fn tests() -> Result<i32> {
    let statuses: Vec<i32> = in_order(PROGRAMS)?
        .iter()
        .map(|program| test(program))
        .collect::<Result<_>>()?;
    Ok(statuses.into_iter().find(|status| *status != 0).unwrap_or(0))
}

/// The words that the kernel did not know, or what the one for the quick selection stands for.
fn filters(program: &Path) -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words != [QUICK_WORD] {
        return words;
    }
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    if QUICK_WHOLE.iter().any(|whole| name.starts_with(whole)) {
        return Vec::new();
    }
    QUICK.map(OsString::from).to_vec()
}

fn test(program: &Path) -> Result<i32> {
    let status = Command::new(program)
        .args(["--test-threads", "1", "--include-ignored"])
        .args(filters(program))
        .env_clear()
        .env("PATH", "/bin")
        .env("CI", "true")
        .env("METAPROXY_LAB_NODE", NODE)
        .env("METAPROXY_TEST_DIVISOR", DIVISOR)
        .status()
        .with_context(|| format!("running {}", program.display()))?;
    Ok(status.code().unwrap_or(98))
}
