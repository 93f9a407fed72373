//! The first process of the guest.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use metaproxy_lab::netns::ip;
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::initramfs::{MODULES, PROGRAM};
use super::{EXIT, QUICK, QUICK_WHOLE, QUICK_WORD};

/// The name that the lab gets for the initial network namespace.
const NODE: &str = "node";

/// The divisor of sizes of attacks, because the guest is slow without hardware virtualisation.
const DIVISOR: &str = "100";

/// Reports whether this process is the first of a guest.
pub fn is_guest() -> bool {
    std::process::id() == 1 && Path::new(PROGRAM).exists()
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

/// Lists the files of a directory by name.
fn in_order(directory: &str) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

/// Runs the tests of [`super::MODULES`] that are chosen by the word that the kernel did not know, all without one;
/// returns the exit status.
fn tests() -> Result<i32> {
    let word = std::env::args().nth(1);
    let listed = program()
        .args(["--list", "--format", "terse"])
        .stderr(Stdio::inherit())
        .output()
        .context("listing the tests")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let chosen: Vec<&str> = names.filter(|name| is_chosen(name, word.as_deref())).collect();
    ensure!(!chosen.is_empty(), "no test is chosen by {word:?}");
    let status = program()
        .args(["--test-threads", "1", "--include-ignored", "--exact"])
        .args(chosen)
        .status()
        .context("running the tests")?;
    Ok(status.code().unwrap_or(98))
}

/// Reports whether the word selects this test, by a part of its name or as the word of the quick selection.
fn is_chosen(name: &str, word: Option<&str>) -> bool {
    let Some((module, _)) = name.split_once("::") else {
        return false;
    };
    super::MODULES.contains(&module)
        && match word {
            None => true,
            Some(QUICK_WORD) => QUICK_WHOLE.contains(&module) || QUICK.iter().any(|part| name.contains(part)),
            Some(part) => name.contains(part),
        }
}

fn program() -> Command {
    let mut program = Command::new(PROGRAM);
    program
        .env_clear()
        .env("PATH", "/bin")
        .env("CI", "true")
        .env("METAPROXY_LAB_NODE", NODE)
        .env("METAPROXY_TEST_DIVISOR", DIVISOR);
    program
}
