//! Opens a cgroup by its id.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// Mirrors `struct file_handle` (include/linux/exportfs.h) of a kernfs node.
#[repr(C)]
struct KernfsHandle {
    handle_bytes: u32,
    handle_type: i32,
    id: u64,
}

/// The type of a handle that holds the 64-bit id of a kernfs node. For a cgroup's directory, this is the cgroup id.
const FILEID_KERNFS: i32 = 0xfe;

/// Opens the directory of a cgroup by its id, with `O_PATH`. `mount` is any directory of the cgroup2 mount.
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH; ESTALE if the cgroup does not exist any more.
pub(super) fn open_cgroup(mount: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    let mut handle = KernfsHandle {
        handle_bytes: size_of::<u64>() as u32,
        handle_type: FILEID_KERNFS,
        id,
    };
    // SAFETY: the handle has the layout of the kernel's structure and lives through the call.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just created this descriptor for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
