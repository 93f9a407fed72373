//! Attaches programs with links. A link ends with its file descriptor in this process, even after SIGKILL.

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// The hook at which a program runs (enum bpf_attach_type, include/uapi/linux/bpf.h).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `BPF_CGROUP_INET_EGRESS`
    Egress = 1,
    /// `BPF_CGROUP_SOCK_OPS`
    SockOps = 3,
    /// `BPF_CGROUP_INET4_CONNECT`
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`
    Connect6 = 11,
    /// `BPF_CGROUP_INET4_GETPEERNAME`
    Getpeername4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`
    Getpeername6 = 30,
}

/// The attach type `BPF_TCX_EGRESS` (Linux 6.6).
pub(super) const TCX_EGRESS: u32 = 47;
/// The flag that attaches a program before another one. No other is named, so it is attached before all others.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_LINK_CREATE: libc::c_long = 28;

/// Mirrors the part of `union bpf_attr` that `BPF_LINK_CREATE` reads for cgroup and tcx links.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

/// An attached program, which is detached on drop.
///
/// Links are not made with aya for two reasons. aya's links cannot be queried for whether they are still attached. On
/// kernels without links, aya falls back to attachments that stay after the process has ended.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
}

impl Link {
    /// Attaches a program to a cgroup and all cgroups below it. A link allows others beside it (kernel/bpf/cgroup.c:
    /// links imply `BPF_F_ALLOW_MULTI`).
    ///
    /// # Errors
    /// EPERM if a program there, or above, allows no second one.
    pub fn to_cgroup(program: BorrowedFd<'_>, hook: Hook, cgroup: BorrowedFd<'_>) -> io::Result<Self> {
        Self::create(&LinkCreate {
            program: program.as_raw_fd() as u32,
            target: cgroup.as_raw_fd() as u32,
            attach_type: hook as u32,
            ..LinkCreate::default()
        })
    }

    /// Attaches a program to the egress of an interface of this network namespace, first in the chain.
    ///
    /// # Errors
    /// ENODEV if there is no such interface; EINVAL before Linux 6.6.
    pub fn to_egress_of(program: BorrowedFd<'_>, interface: u32) -> io::Result<Self> {
        Self::create(&LinkCreate {
            program: program.as_raw_fd() as u32,
            target: interface,
            attach_type: TCX_EGRESS,
            flags: BPF_F_BEFORE,
            ..LinkCreate::default()
        })
    }

    fn create(attributes: &LinkCreate) -> io::Result<Self> {
        // SAFETY: the attributes live through the call and have the given length.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_LINK_CREATE,
                std::ptr::from_ref(attributes),
                size_of::<LinkCreate>(),
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just created this descriptor for this process, and nothing else owns it. It closes
        // on exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(Self { fd })
    }

    /// Reports whether it is still attached. Its cgroup or interface may have been removed, or another process may
    /// have detached it (`BPF_LINK_DETACH`). The descriptor stays open then, and the kernel sends no notice.
    pub fn is_attached(&self) -> bool {
        // If the file cannot be read, the link counts as attached, because attaching it again at each check would be
        // worse.
        fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd()))
            .map_or(true, |info| has_target(&info))
    }
}

/// Reports whether a link has a target. A link without one shows 0 (`bpf_cgroup_link_show_fdinfo`,
/// `tcx_link_fdinfo`).
fn has_target(fdinfo: &str) -> bool {
    fdinfo.lines().all(|line| {
        let field = line
            .strip_prefix("cgroup_id:")
            .or_else(|| line.strip_prefix("ifindex:"));
        field.is_none_or(|target| target.trim() != "0")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_without_target_is_recognized_from_its_fdinfo() {
        let cgroup = "pos:\t0\nflags:\t02000000\nlink_type:\tcgroup\nlink_id:\t7\ncgroup_id:\t1234\nattach_type:\t10\n";
        assert!(has_target(cgroup));
        assert!(!has_target(&cgroup.replace("1234", "0")));
        assert!(has_target("link_type:\ttcx\nifindex:\t3\n"));
        assert!(!has_target("link_type:\ttcx\nifindex:\t0\n"));
    }
}
