//! Finds programs of other software at the hooks to which metaproxy attaches.
//!
//! The queries are not made with aya. Its queries open each program, which needs CAP_SYS_ADMIN, and the agent must
//! find a conflict without that capability.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use metaproxy_common::names;

use super::link::{Hook, TCX_EGRESS};
use super::own_links::program_name;

// Commands of bpf(2).
const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
const BPF_PROG_QUERY: libc::c_long = 16;

/// The query flag for the programs that run for a cgroup, in their order. Its own programs run first, then those of
/// the cgroups above it (`compute_effective_progs`, kernel/bpf/cgroup.c). Programs with `BPF_F_PREORDER` (Linux 6.15)
/// run before all of these.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// The query flags for the programs of the cgroup itself.
const QUERY_ITS_OWN: u32 = 0;

const BPF_F_ALLOW_OVERRIDE: u32 = 1;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// The maximum number of programs that a query returns. One cgroup (`BPF_CGROUP_MAX_PROGS`, kernel/bpf/cgroup.c) or
/// interface (`BPF_MPROG_MAX`, include/linux/bpf_mprog.h) has at most 64, and a cgroup inherits those above it.
const MAX_PROGRAMS: usize = 256;

/// The hooks to which the agent attaches, with bpftool's names.
const HOOKS: [(Hook, &str); 5] = [
    (Hook::SockOps, "cgroup_sock_ops"),
    (Hook::Connect4, "cgroup_inet4_connect"),
    (Hook::Connect6, "cgroup_inet6_connect"),
    (Hook::Getpeername4, "cgroup_inet4_getpeername"),
    (Hook::Getpeername6, "cgroup_inet6_getpeername"),
];

/// A program at one of these hooks, of other software or of metaproxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedProgram {
    /// The cgroup.
    pub cgroup: PathBuf,
    /// The hook.
    pub hook: Hook,
    /// The program.
    pub program: Program,
    /// The flags of its attachment.
    flags: u32,
}

/// A program in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The id.
    pub id: u32,
    /// The name; `None` if this process may not read it.
    pub name: Option<String>,
}

impl Program {
    fn of(id: u32) -> Self {
        Self { id, name: name(id) }
    }

    /// Reports whether it is a program of metaproxy, loaded by any process.
    pub fn is_ours(&self) -> bool {
        self.name
            .as_ref()
            .is_some_and(|name| name.starts_with(names::PREFIX))
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "program {name} (id {})", self.id),
            None => write!(f, "program {}", self.id),
        }
    }
}

impl AttachedProgram {
    /// Reports whether it prevents metaproxy's program from being attached to a cgroup (`hierarchy_allows_attach` and
    /// the comparison of flags in `__cgroup_bpf_attach`, kernel/bpf/cgroup.c).
    pub fn blocks(&self, pods: &Path) -> bool {
        match self.flags & (BPF_F_ALLOW_OVERRIDE | BPF_F_ALLOW_MULTI) {
            0 => true,
            BPF_F_ALLOW_OVERRIDE => self.cgroup == pods,
            _ => false,
        }
    }

    /// Returns bpftool's name of the hook.
    pub fn hook_name(&self) -> &'static str {
        let known = HOOKS.iter().find(|(hook, _)| *hook == self.hook);
        known.map_or("", |(_, name)| name)
    }
}

impl fmt::Display for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, cgroup) = (self.hook_name(), self.cgroup.display());
        write!(f, "{} at {hook} of {cgroup}", self.program)
    }
}

/// Lists the programs of a cgroup, and of those above it up to the root of the tree.
///
/// # Errors
/// EPERM without `CAP_NET_ADMIN`, or the error of opening a cgroup.
pub fn up_to(cgroup: &Path, root: &Path) -> io::Result<Vec<AttachedProgram>> {
    let mut found = Vec::new();
    for dir in cgroup.ancestors().take_while(|dir| dir.starts_with(root)) {
        for (hook, _) in HOOKS {
            found.extend(at(dir, hook)?);
        }
    }
    Ok(found)
}

fn at(dir: &Path, hook: Hook) -> io::Result<Vec<AttachedProgram>> {
    let (ids, flags) = query(File::open(dir)?.as_raw_fd() as u32, hook as u32, QUERY_ITS_OWN)?;
    let programs = ids.into_iter().map(Program::of);
    let attached = |program| AttachedProgram {
        cgroup: dir.to_owned(),
        hook,
        program,
        flags,
    };
    Ok(programs.map(attached).collect())
}

/// Lists the programs that run before metaproxy's for a connection of a pod: those attached earlier at the pods'
/// cgroup, those below it, and those above it with `BPF_F_PREORDER`. Returns none while metaproxy's programs are not
/// attached.
///
/// # Errors
/// As [`up_to`].
pub fn before_ours(pods: &Path, attached: &[AttachedProgram]) -> io::Result<Vec<AttachedProgram>> {
    let open = File::open(pods)?;
    let mut found = Vec::new();
    for (hook, _) in HOOKS {
        let (ids, _) = query(open.as_raw_fd() as u32, hook as u32, BPF_F_QUERY_EFFECTIVE)?;
        let here: Vec<&AttachedProgram> = attached.iter().filter(|one| one.hook == hook).collect();
        let known = |id: &u32| here.iter().copied().find(|one| one.program.id == *id);
        let Some(ours) = ids
            .iter()
            .position(|id| known(id).is_some_and(|one| one.program.is_ours()))
        else {
            continue;
        };
        if matches!(hook, Hook::Connect4 | Hook::Connect6) {
            found.extend(below(pods, hook));
        }
        found.extend(ids.iter().take(ours).filter_map(known).cloned());
    }
    Ok(found)
}

/// Lists the programs of the cgroups below a cgroup. These run first. A cgroup that is removed meanwhile has none.
fn below(dir: &Path, hook: Hook) -> Vec<AttachedProgram> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .flat_map(|entry| {
            let mut found = at(&entry.path(), hook).unwrap_or_default();
            found.extend(below(&entry.path(), hook));
            found
        })
        .filter(|one| !one.program.is_ours())
        .collect()
}

/// Lists the programs at the egress of this network namespace's interfaces that run before the guard's, each with the
/// interface's name.
pub fn before_the_guard() -> Vec<(String, Program)> {
    let interfaces = nix::net::if_::if_nameindex();
    let mut found = Vec::new();
    for interface in interfaces.iter().flat_map(|list| list.iter()) {
        // Before Linux 6.6 there is no tcx, so an interface has neither other programs nor a guard's.
        let Ok((ids, _)) = query(interface.index(), TCX_EGRESS, QUERY_ITS_OWN) else {
            continue;
        };
        let programs: Vec<Program> = ids.into_iter().map(Program::of).collect();
        let guard = programs.iter().position(Program::is_ours).unwrap_or_default();
        let name = interface.name().to_string_lossy().into_owned();
        found.extend(
            programs
                .into_iter()
                .take(guard)
                .map(|program| (name.clone(), program)),
        );
    }
    found
}

/// Mirrors the part of `union bpf_attr` that `BPF_PROG_QUERY` uses.
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
}

/// Returns program ids in the order in which they run, and the flags of their attachment.
fn query(target: u32, attach_type: u32, query_flags: u32) -> io::Result<(Vec<u32>, u32)> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target,
        attach_type,
        query_flags,
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS as u32,
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
    // SAFETY: the kernel has just created this descriptor for this process, and nothing else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    program_name(u32::try_from(fd.as_raw_fd()).ok()?)
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes and what they point to live through the call and have the given length.
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
    fn a_blocking_program_is_recognized_by_its_flags_and_cgroup() {
        let pods = Path::new("/sys/fs/cgroup/kubepods");
        let at = |cgroup: &str, flags| AttachedProgram {
            cgroup: cgroup.into(),
            hook: Hook::Connect4,
            program: Program {
                id: 7,
                name: Some("theirs".to_owned()),
            },
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
