//! sock_ops programs of other software, which change the options and flags of a connection.

use std::fs::File;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::{BPF_LINK_CREATE, bpf, instruction, load};

const BPF_PROG_TYPE_SOCK_OPS: u32 = 13;
const BPF_CGROUP_SOCK_OPS: u32 = 3;

// enum of include/uapi/linux/bpf.h: operations, flags and helpers.
const ACTIVE_ESTABLISHED: i32 = 4;
const HDR_OPT_LEN: i32 = 14;
const WRITE_HDR_OPT_CB_FLAG: i32 = 1 << 6;
const CB_FLAGS_SET: i32 = 59;
const RESERVE_HDR_OPT: i32 = 144;

/// The action of a sock_ops program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SockOpsAction {
    /// Sets the callback flags of an established connection to none, and so removes the flags of other programs.
    ClearFlags,
    /// Reserves this number of bytes of each packet's options, at most 40.
    TakeRoom(u8),
}

fn code(action: SockOpsAction) -> Vec<u64> {
    let copy = |to, from| instruction(0xbf, to, from, 0, 0);
    let set = |to, value| instruction(0xb7, to, 0, 0, value);
    let read_op = instruction(0x61, 7, 6, 0, 0);
    let skip_unless = |op, instructions| instruction(0x55, 7, 0, instructions, op);
    let call = |helper| instruction(0x85, 0, 0, 0, helper);
    let flags = match action {
        SockOpsAction::ClearFlags => 0,
        SockOpsAction::TakeRoom(_) => WRITE_HDR_OPT_CB_FLAG,
    };
    let mut code = vec![
        copy(6, 1),
        read_op,
        skip_unless(ACTIVE_ESTABLISHED, 3),
        copy(1, 6),
        set(2, flags),
        call(CB_FLAGS_SET),
    ];
    if let SockOpsAction::TakeRoom(bytes) = action {
        code.extend([
            skip_unless(HDR_OPT_LEN, 4),
            copy(1, 6),
            set(2, i32::from(bytes)),
            set(3, 0),
            call(RESERVE_HDR_OPT),
        ]);
    }
    code.extend([set(0, 1), instruction(0x95, 0, 0, 0, 0)]);
    code
}

/// Attaches a program to a cgroup. Dropping the link detaches it.
///
/// # Errors
/// If the kernel refuses.
pub fn attach_sock_ops(cgroup: &Path, action: SockOpsAction) -> Result<OwnedFd> {
    let program = load(BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, &code(action))?;
    let cgroup = File::open(cgroup)?;
    let mut attach = [
        program.as_raw_fd() as u32,
        cgroup.as_raw_fd() as u32,
        BPF_CGROUP_SOCK_OPS,
        0,
    ];
    let link = bpf(BPF_LINK_CREATE, &mut attach).context("attaching another program")?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link) })
}
