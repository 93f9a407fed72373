//! The privileges of a container's process.

use std::fs;
use std::io;

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// The ids of the user and of the group that own no files.
const NOBODY: u32 = 65_534;

/// The capabilities that containers have by default (moby, `oci/caps/defaults.go`), by number (capabilities(7)): among
/// them CAP_NET_RAW, 13.
const DEFAULT_CAPABILITIES: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h)
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// The privileges that an attack runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Privileges {
    /// The privileges of this process
    Root,
    /// Root with the capabilities that containers have by default
    Default,
    /// User 65534 without any capability, an empty bounding set, no_new_privs
    None,
}

impl Privileges {
    /// Gives up all other privileges.
    pub fn take_on(self) -> Result<()> {
        match self {
            Self::Root => Ok(()),
            Self::Default => {
                drop_bounding_set(&DEFAULT_CAPABILITIES)?;
                set_capabilities(DEFAULT_CAPABILITIES.iter().map(|number| 1_u64 << number).sum())
            }
            Self::None => {
                drop_bounding_set(&[])?;
                let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
                setgroups(&[]).context("setgroups")?;
                setresgid(group, group, group).context("setresgid")?;
                setresuid(user, user, user).context("setresuid")?;
                set_capabilities(0)?;
                prctl(libc::PR_SET_NO_NEW_PRIVS, 1).context("no_new_privs")?;
                // A process that changed its user does not own its files in /proc until it executes a program
                // (proc(5)).
                prctl(libc::PR_SET_DUMPABLE, 1).context("PR_SET_DUMPABLE")
            }
        }
    }
}

/// Enters new user and network namespaces as root, as `unshare -Urn` does.
pub fn enter_own_namespaces() -> Result<()> {
    let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("unshare -Urn")?;
    // user_namespaces(7)
    for (name, text) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("0 {user} 1")),
        ("gid_map", format!("0 {group} 1")),
    ] {
        fs::write(format!("/proc/self/{name}"), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

fn drop_bounding_set(keep: &[u32]) -> Result<()> {
    for number in (0..64).filter(|number| !keep.contains(number)) {
        match prctl(libc::PR_CAPBSET_DROP, u64::from(number)) {
            // This kernel has no further capabilities.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            other => other.context("PR_CAPBSET_DROP")?,
        }
    }
    Ok(())
}

fn prctl(option: i32, argument: u64) -> io::Result<()> {
    // SAFETY: none of the options used takes a pointer.
    match unsafe { libc::prctl(option, argument, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the permitted and effective capabilities to these, and the inheritable ones to none.
fn set_capabilities(set: u64) -> Result<()> {
    let header = [CAPABILITY_VERSION, 0];
    let (low, high) = (set as u32, (set >> 32) as u32);
    let data = [low, low, 0, high, high, 0];
    // SAFETY: capset(2) reads a header of two words, and two sets of three words each.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    ensure!(result == 0, "capset: {}", io::Error::last_os_error());
    Ok(())
}
