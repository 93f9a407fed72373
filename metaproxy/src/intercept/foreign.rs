//! Who else is attached at our hooks.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::inspect::program_name;
use super::link::Hook;

/// Commands of bpf(2).
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_PROG_QUERY: libc::c_long = 16;

const BPF_F_ALLOW_OVERRIDE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// More than anybody attaches to one cgroup (`BPF_CGROUP_MAX_PROGS`, kernel/bpf/cgroup.c).
const MOST: usize = 64;

/// Those that we attach at.
const HOOKS: [(Hook, &str); 5] = [
    (Hook::SockOps, "cgroup_sock_ops"),
    (Hook::Connect4, "cgroup_inet4_connect"),
    (Hook::Connect6, "cgroup_inet6_connect"),
    (Hook::Getpeername4, "cgroup_inet4_getpeername"),
    (Hook::Getpeername6, "cgroup_inet6_getpeername"),
];

/// A program at one of our hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Where.
    pub cgroup: PathBuf,
    /// At which hook.
    pub hook: Hook,
    /// Its id.
    pub id: u32,
    /// Its name; its id where that can't be asked.
    pub program: String,
    /// Those of its attachment.
    flags: u32,
}

impl Foreign {
    /// Whether ours can't be attached to a cgroup for it (`hierarchy_allows_attach` and the comparison of flags in
    /// `__cgroup_bpf_attach`, kernel/bpf/cgroup.c).
    pub fn blocks(&self, pods: &Path) -> bool {
        match self.flags & (BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI) {
            0 => true,
            BPF_F_ALLOW_OVERRIDE => self.cgroup == pods,
            _ => false,
        }
    }

    /// The hook, as bpftool calls it.
    pub fn hook_name(&self) -> &'static str {
        let known = HOOKS.iter().find(|(hook, _)| *hook == self.hook);
        known.map_or("", |(_, name)| name)
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, cgroup) = (self.hook_name(), self.cgroup.display());
        write!(
            f,
            "program {} (id {}) at {hook} of {cgroup}",
            self.program, self.id
        )
    }
}

/// All that are attached to a cgroup, and to those above it up to the root of the tree.
///
/// # Errors
/// EPERM without `CAP_NET_ADMIN`; those of opening the cgroups.
pub fn up_to(cgroup: &Path, root: &Path) -> io::Result<Vec<Foreign>> {
    let mut found = Vec::new();
    for dir in cgroup.ancestors().take_while(|dir| dir.starts_with(root)) {
        let open = File::open(dir)?;
        for (hook, _) in HOOKS {
            let (ids, flags) = query(&open, hook)?;
            found.extend(ids.into_iter().map(|id| Foreign {
                cgroup: dir.to_owned(),
                hook,
                id,
                program: name(id).unwrap_or_else(|| format!("{id}")),
                flags,
            }));
        }
    }
    Ok(found)
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` uses.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    pad: u32,
    attach_flags_of_each: u64,
}

fn query(cgroup: &File, hook: Hook) -> io::Result<(Vec<u32>, u32)> {
    let mut ids = [0_u32; MOST];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        attach_type: hook as u32,
        ids: ids.as_mut_ptr() as u64,
        count: MOST as u32,
        ..Query::default()
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    let ids = ids.iter().take(query.count as usize).copied().collect();
    Ok((ids, query.attach_flags))
}

fn name(id: u32) -> Option<String> {
    #[repr(C)]
    struct ById {
        id: u32,
        next: u32,
        flags: u32,
    }
    let mut by_id = ById {
        id,
        next: 0,
        flags: 0,
    };
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id).ok()?;
    // SAFETY: the kernel just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    program_name(u32::try_from(fd.as_raw_fd()).ok()?)
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes live through the call and are as long as said; so does what they point to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_no_room_is_told_by_its_flags_and_place() {
        let pods = Path::new("/sys/fs/cgroup/kubepods");
        let at = |cgroup: &str, flags| Foreign {
            cgroup: cgroup.into(),
            hook: Hook::Connect4,
            id: 7,
            program: "theirs".to_owned(),
            flags,
        };
        assert!(at("/sys/fs/cgroup", 0).blocks(pods));
        assert!(at("/sys/fs/cgroup/kubepods", BPF_F_ALLOW_OVERRIDE).blocks(pods));
        assert!(!at("/sys/fs/cgroup", BPF_F_ALLOW_OVERRIDE).blocks(pods));
        assert!(!at("/sys/fs/cgroup/kubepods", BPF_F_ALLOW_MULTI).blocks(pods));
        assert_eq!(
            at("/c", 0).to_string(),
            "program theirs (id 7) at cgroup_inet4_connect of /c"
        );
    }
}
