//! Runs as the first process of the guest.

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

/// The name of the guest's initial network namespace, which the lab uses as the node's.
const NODE: &str = "node";

/// The number by which the tests divide the sizes of attacks, because the guest is slow without hardware
/// virtualisation.
const DIVISOR: &str = "100";

/// Reports whether this process is the first process of a guest.
pub fn is_guest() -> bool {
    std::process::id() == 1 && Path::new(PROGRAM).exists()
}

/// Sets the guest up, runs the tests, and ends the guest.
pub fn run() {
    let status = match set_up().and_then(|()| tests()) {
        Ok(status) => status,
        Err(error) => {
            println!("the guest could not be set up: {error:#}");
            99
        }
    };
    println!("{EXIT} {status}");
    // QEMU exits when the guest reboots (`-no-reboot`). The guest has no data to keep.
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
            .with_context(|| format!("cannot mount {at}"))?;
    }
    // Nothing is mounted at /tmp: the workspace may lie below it, and the whole file system is in memory anyway.
    std::fs::create_dir_all("/tmp")?;
    for module in in_order(MODULES)? {
        load_module(&module)?;
    }
    ip(&["link", "set", "lo", "up"])?;
    // The lab opens network namespaces by their names.
    ip(&["netns", "attach", NODE, "1"])
}

fn load_module(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::default();
    // SAFETY: the parameters live through the call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot load {}", path.display()));
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

/// Runs the tests of [`super::MODULES`] that the first argument selects, or all of them without an argument; returns
/// the exit status. The kernel passes the words after `--` on its command line to the first process as arguments
/// (Documentation/admin-guide/kernel-parameters.rst).
fn tests() -> Result<i32> {
    let word = std::env::args().nth(1);
    let listed = program()
        .args(["--list", "--format", "terse"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot list the tests")?;
    let listed = String::from_utf8_lossy(&listed.stdout);
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    let chosen: Vec<&str> = names.filter(|name| is_chosen(name, word.as_deref())).collect();
    ensure!(!chosen.is_empty(), "no test matches {word:?}");
    let status = program()
        .args(["--test-threads", "1", "--include-ignored", "--exact"])
        .args(chosen)
        .status()
        .context("cannot run the tests")?;
    Ok(status.code().unwrap_or(98))
}

/// Reports whether a word selects this test. The word is a part of the test's name, or [`QUICK_WORD`].
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
