//! eBPF programs of other software, at the hooks that metaproxy uses.

mod sock_ops;

use std::fs::File;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};

pub use self::sock_ops::{SockOpsAction, attach_sock_ops};
use super::Lab;
use super::bpf::links_of;
use super::netns::Netns;

// include/uapi/linux/bpf.h
const BPF_PROG_LOAD: i32 = 5;
const BPF_PROG_ATTACH: i32 = 8;
const BPF_PROG_DETACH: i32 = 9;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_GET_FD_BY_ID: i32 = 30;
const BPF_LINK_DETACH: i32 = 34;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT`
const CONNECT4: u32 = 10;

/// The name under which `bpftool` and `metaproxy doctor` show these programs.
const NAME: &[u8] = b"other_software";

/// How a program is attached (bpf(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachMode {
    /// No flag: no other program may be there, or at a cgroup below.
    Exclusive = 0,
    /// `BPF_F_ALLOW_MULTI`
    Multi = 2,
    /// `BPF_F_ALLOW_MULTI` and `BPF_F_PREORDER` (Linux 6.15): it runs before those of the cgroups below.
    Preorder = 2 | 1 << 6,
}

/// A program of other software at connect4 of a cgroup. Dropping it detaches the program.
#[derive(Debug)]
pub struct ConnectProgram {
    program: OwnedFd,
    cgroup: File,
}

fn bpf<T>(command: i32, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: the attributes live through the call and have the length that is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result as i32)
    }
}

/// The part of `union bpf_attr` from which a tcx link is made.
#[repr(C)]
#[derive(Default)]
struct Tcx {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log: [u64; 2],
    version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// Encodes an instruction (Documentation/bpf/standardization/instruction-set.rst).
fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    u64::from(code)
        | u64::from(to) << 8
        | u64::from(from) << 12
        | u64::from(offset as u16) << 16
        | u64::from(value as u32) << 32
}

/// Loads a program that does nothing but return a number.
fn program(kind: u32, attach_type: u32, returns: u32) -> Result<OwnedFd> {
    // r0 = returns; exit
    load(kind, attach_type, &[u64::from(returns) << 32 | 0xb7, 0x95])
}

fn load(kind: u32, attach_type: u32, code: &[u64]) -> Result<OwnedFd> {
    let mut load = Load {
        kind,
        instructions: u32::try_from(code.len())?,
        code: code.as_ptr().expose_provenance() as u64,
        license: c"GPL".as_ptr().expose_provenance() as u64,
        attach_type,
        ..Load::default()
    };
    load.name[..NAME.len()].copy_from_slice(NAME);
    // Before Linux 5.11 programs count as locked memory. Later kernels do not need a higher limit, so errors are
    // ignored.
    let unlimited = nix::sys::resource::RLIM_INFINITY;
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_MEMLOCK, unlimited, unlimited);
    let fd = bpf(BPF_PROG_LOAD, &mut load).context("loading another program")?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to the egress of an interface, after the programs that are attached there. It lets every packet
/// pass and ends the chain. Dropping the link detaches it.
///
/// # Errors
/// If this kernel has no tcx.
pub fn attach_to_egress(netns: &Netns, interface: &str) -> Result<OwnedFd> {
    attach_to_egress_with(netns, interface, 0)
}

/// Attaches the program of [`attach_to_egress`] before the programs that are attached there.
///
/// # Errors
/// If this kernel has no tcx.
pub fn attach_first_to_egress(netns: &Netns, interface: &str) -> Result<OwnedFd> {
    attach_to_egress_with(netns, interface, BPF_F_BEFORE)
}

fn attach_to_egress_with(netns: &Netns, interface: &str, flags: u32) -> Result<OwnedFd> {
    // TCX_PASS
    let program = program(BPF_PROG_TYPE_SCHED_CLS, 0, 0)?;
    let link = netns.run(|| -> Result<i32> {
        let index = nix::net::if_::if_nametoindex(interface)?;
        let mut attach = Tcx {
            program: program.as_raw_fd() as u32,
            interface: index,
            attach_type: BPF_TCX_EGRESS,
            flags,
            ..Tcx::default()
        };
        bpf(BPF_LINK_CREATE, &mut attach).context("attaching another program")
    })??;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}

/// Returns the code of a program at connect4 that sends connections for one address to another, as a socket load
/// balancer does for a Service's external address or a pod's host port.
fn translation(from: SocketAddrV4, to: SocketAddrV4) -> Vec<u64> {
    // Offsets in struct bpf_sock_addr.
    const USER_IP4: i16 = 4;
    const USER_PORT: i16 = 24;
    let ip = |address: &SocketAddrV4| i32::from_ne_bytes(address.ip().octets());
    let port = |address: &SocketAddrV4| i32::from(address.port().to_be());
    let read = |to, offset| instruction(0x61, to, 1, offset, 0);
    let skip_unless = |register, value, instructions| instruction(0x56, register, 0, instructions, value);
    let write = |offset, value| {
        [
            instruction(0xb4, 2, 0, 0, value),
            instruction(0x63, 1, 2, offset, 0),
        ]
    };
    let [ip1, ip2] = write(USER_IP4, ip(&to));
    let [port1, port2] = write(USER_PORT, port(&to));
    vec![
        read(2, USER_IP4),
        read(3, USER_PORT),
        skip_unless(2, ip(&from), 5),
        skip_unless(3, port(&from), 4),
        ip1,
        ip2,
        port1,
        port2,
        // r0 = 1; exit
        instruction(0xb7, 0, 0, 0, 1),
        instruction(0x95, 0, 0, 0, 0),
    ]
}

impl ConnectProgram {
    /// Attaches a program that allows everything.
    pub fn attach(cgroup: &Path, how: AttachMode) -> Result<Self> {
        Self::attach_program(program(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, CONNECT4, 1)?, cgroup, how)
    }

    /// Attaches a program that sends connections for one address to another.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn translate(cgroup: &Path, from: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        let code = translation(from, to);
        let program = load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, CONNECT4, &code)?;
        Self::attach_program(program, cgroup, AttachMode::Multi)
    }

    fn attach_program(program: OwnedFd, cgroup: &Path, how: AttachMode) -> Result<Self> {
        let cgroup = File::open(cgroup)?;
        let mut attach = [
            cgroup.as_raw_fd() as u32,
            program.as_raw_fd() as u32,
            CONNECT4,
            how as u32,
        ];
        bpf(BPF_PROG_ATTACH, &mut attach).context("attaching another program")?;
        Ok(Self { program, cgroup })
    }
}

impl Drop for ConnectProgram {
    fn drop(&mut self) {
        let mut detach = [
            self.cgroup.as_raw_fd() as u32,
            self.program.as_raw_fd() as u32,
            CONNECT4,
            0,
        ];
        let _ = bpf(BPF_PROG_DETACH, &mut detach);
    }
}

/// Detaches every link of the lab's agents and guards whose program has this name, as `bpftool link detach` does;
/// returns how many.
///
/// # Errors
/// If the links cannot be listed or detached.
pub fn detach_links_of(lab: &Lab, name: &str) -> Result<usize> {
    let links = links_of(lab, name)?;
    for link in &links {
        let mut by_id = [*link, 0, 0];
        let fd = bpf(BPF_LINK_GET_FD_BY_ID, &mut by_id).context("a link's descriptor")?;
        // SAFETY: the kernel just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        bpf(BPF_LINK_DETACH, &mut [fd.as_raw_fd() as u32]).context("detaching a link")?;
    }
    Ok(links.len())
}
