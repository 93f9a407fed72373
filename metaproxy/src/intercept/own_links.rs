//! Lists the links of this process, which it finds by its own descriptors in /proc.
//!
//! aya lists links and programs by their ids, which needs CAP_SYS_ADMIN. Reading own descriptors needs no capability.

use std::collections::BTreeMap;
use std::fs;
use std::mem::size_of;

use procfs::process::{FDTarget, Process};

/// A command of bpf(2).
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;

/// An attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachedLink {
    /// The link's id, as `bpftool link` shows it.
    pub link: u32,
    /// The program's name.
    pub program: String,
    /// The target of the link.
    pub target: LinkTarget,
}

/// The target to which a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkTarget {
    /// A cgroup, by its id; 0 if the link was detached.
    Cgroup(u64),
    /// The egress of a network interface, by its index; 0 if the link was detached.
    Interface(u32),
}

/// Lists the links of this process, in the order of their ids.
pub fn list() -> Vec<AttachedLink> {
    let mut links = Vec::new();
    let mut programs = BTreeMap::new();
    let descriptors = Process::myself().and_then(|process| process.fd());
    for descriptor in descriptors.into_iter().flatten().flatten() {
        let FDTarget::AnonInode(kind) = &descriptor.target else {
            continue;
        };
        // procfs does not parse the fields that the kernel shows for eBPF descriptors.
        let info = || fs::read_to_string(format!("/proc/self/fdinfo/{}", descriptor.fd)).unwrap_or_default();
        match kind.as_str() {
            "bpf_link" => links.extend(link(&info())),
            "bpf-prog" => {
                let id = field::<u32>(&info(), "prog_id:");
                if let (Some(id), Some(name)) = (id, program_name(descriptor.fd as u32)) {
                    programs.insert(id, name);
                }
            }
            _ => {}
        }
    }
    let mut attached: Vec<AttachedLink> = links
        .into_iter()
        .map(|(link, program, target)| AttachedLink {
            link,
            program: programs
                .get(&program)
                .cloned()
                .unwrap_or_else(|| format!("program {program}")),
            target,
        })
        .collect();
    attached.sort_by_key(|one| one.link);
    attached
}

/// Reads link id, program id and target from a link's fdinfo (`bpf_link_show_fdinfo` and those of its kinds).
fn link(fdinfo: &str) -> Option<(u32, u32, LinkTarget)> {
    let cgroup = field(fdinfo, "cgroup_id:").map(LinkTarget::Cgroup);
    let target = cgroup.or_else(|| field(fdinfo, "ifindex:").map(LinkTarget::Interface))?;
    Some((field(fdinfo, "link_id:")?, field(fdinfo, "prog_id:")?, target))
}

fn field<T: std::str::FromStr>(fdinfo: &str, name: &str) -> Option<T> {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Mirrors the beginning of `struct bpf_prog_info` (include/uapi/linux/bpf.h), up to its name.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    instructions: [u64; 2],
    load_time: u64,
    created_by: u32,
    map_ids: u32,
    maps: u64,
    name: [u8; 16],
}

/// Returns the name of the program of a descriptor of this process.
pub(super) fn program_name(descriptor: u32) -> Option<String> {
    #[repr(C)]
    struct Attributes {
        descriptor: u32,
        length: u32,
        info: u64,
    }
    let mut info = ProgramInfo::default();
    let attributes = Attributes {
        descriptor,
        length: size_of::<ProgramInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: both structures live through the call and have the given lengths, beyond which the kernel does not
    // write.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_OBJ_GET_INFO_BY_FD,
            std::ptr::from_ref(&attributes),
            size_of::<Attributes>(),
        )
    };
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    (result == 0 && !name.is_empty()).then(|| String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_links_target_is_read_from_its_fdinfo() {
        let cgroup = "pos:\t0\nlink_type:\tcgroup\nlink_id:\t7\nprog_tag:\tab\nprog_id:\t31\ncgroup_id:\t1234\nattach_type:\t10\n";
        assert_eq!(link(cgroup), Some((7, 31, LinkTarget::Cgroup(1234))));
        let tcx = "link_type:\ttcx\nlink_id:\t8\nprog_id:\t32\nifindex:\t3\nattach_type:\ttcx_egress (47)\n";
        assert_eq!(link(tcx), Some((8, 32, LinkTarget::Interface(3))));
        assert_eq!(link("link_type:\ttracing\nlink_id:\t8\nprog_id:\t32\n"), None);
    }
}
