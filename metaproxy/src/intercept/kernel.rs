//! Checks the kernel before anything is loaded into it, and makes the socket calls for which no library has a
//! wrapper.

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::util::KernelVersion;
use thiserror::Error;

/// The reasons why this kernel, or the network namespace of this process, cannot be used.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The kernel is older than 5.10. Before 5.7, attached programs stay after the process has ended. 5.10 is the
    /// oldest version that is tested.
    #[error(
        "this kernel is {release}, and metaproxy needs Linux 5.10 or newer: on older ones eBPF programs would stay \
         attached after the agent has ended. Update the node's kernel"
    )]
    TooOld {
        /// The release, as `uname -r` prints it.
        release: String,
    },
    /// The version cannot be read.
    #[error("cannot read the kernel's version: {0}")]
    Unreadable(String),
    /// The node's network namespace cannot be distinguished from others.
    #[error(
        "cannot tell the node's network namespace from the pods': SO_NETNS_COOKIE failed ({0}), and this process is \
         not in the initial network namespace. Run the agent with hostNetwork, or use Linux 5.14 or newer"
    )]
    NetnsUnknown(io::Error),
}

/// Checks the kernel's version.
///
/// # Errors
/// [`KernelError::TooOld`] before 5.10, or [`KernelError::Unreadable`].
pub fn check_version() -> Result<(), KernelError> {
    let version = KernelVersion::current().map_err(|error| KernelError::Unreadable(error.to_string()))?;
    let release = nix::sys::utsname::uname()
        .map(|uname| uname.release().to_string_lossy().into_owned())
        .map_err(|error| KernelError::Unreadable(error.to_string()))?;
    check(version, release)
}

fn check(version: KernelVersion, release: String) -> Result<(), KernelError> {
    if version < KernelVersion::new(5, 10, 0) {
        return Err(KernelError::TooOld { release });
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one, because each connection needs a descriptor and many systems
/// set the soft limit to 1024.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!("cannot raise the limit of open files: {error}"),
    }
}

/// Returns the cookie of this process's network namespace, which is the node's. Returns 0 if the kernel has no option
/// for it and this is the initial namespace, because the programs can get that namespace's cookie.
///
/// # Errors
/// [`KernelError::NetnsUnknown`] if the kernel has no option for it and this is another namespace.
pub fn node_netns_cookie() -> Result<u64, KernelError> {
    let socket = UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| UdpSocket::bind("[::1]:0"))
        .map_err(KernelError::NetnsUnknown)?;
    match netns_cookie(socket.as_fd()) {
        Ok(cookie) => Ok(cookie),
        Err(_) if in_initial_netns(Path::new("/proc")) => Ok(0),
        Err(error) => Err(KernelError::NetnsUnknown(error)),
    }
}

/// Reports whether this is the initial network namespace. The kernel registers `net.core.bpf_jit_enable` only for
/// that one (net/core/sysctl_net_core.c).
fn in_initial_netns(proc: &Path) -> bool {
    proc.join("sys/net/core/bpf_jit_enable").exists()
}

/// Returns the `SO_NETNS_COOKIE` of a socket. The error is ENOPROTOOPT before Linux 5.14.
fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE).map(u64::from_ne_bytes)
}

/// Turns fast open off for a listener, even if `net.ipv4.tcp_fastopen` turns it on for all listeners. Otherwise data
/// in the SYN would be accepted before the packet that carries the caller. This must be called after `listen()`,
/// which sets the length of the queue (`inet_listen`, net/ipv4/af_inet.c).
///
/// # Errors
/// If `setsockopt(TCP_FASTOPEN)` fails.
pub fn refuse_fast_open(listener: BorrowedFd<'_>) -> io::Result<()> {
    let queue: libc::c_int = 0;
    // SAFETY: the kernel reads one integer, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the first `N` bytes of a socket option.
fn option<const N: usize>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut length = N as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_below_5_10_are_refused_with_a_sentence() {
        for (version, fine) in [
            (KernelVersion::new(4, 19, 0), false),
            (KernelVersion::new(5, 4, 300), false),
            (KernelVersion::new(5, 9, 16), false),
            (KernelVersion::new(5, 10, 0), true),
            (KernelVersion::new(6, 18, 44), true),
        ] {
            let result = check(version, "X".to_owned());
            assert_eq!(result.is_ok(), fine, "{version:?}");
            if let Err(error) = result {
                assert!(
                    error
                        .to_string()
                        .starts_with("this kernel is X, and metaproxy needs Linux 5.10")
                );
            }
        }
    }

    #[test]
    fn the_namespace_of_this_process_keeps_its_cookie() {
        assert_eq!(node_netns_cookie().unwrap(), node_netns_cookie().unwrap());
    }
}
