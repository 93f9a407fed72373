//! Checks the kernel before anything is loaded into it, and makes the socket calls for which no library has a wrapper.

use std::io;
use std::mem::size_of;
use std::net::UdpSocket;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use aya::util::KernelVersion;
use thiserror::Error;

/// Why this kernel, or this place in it, will not do.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Before 5.7 attaching leaves programs behind; before 5.10 the hooks were never tried.
    #[error(
        "this kernel is {release}, and metaproxy needs Linux 5.10 or newer: on older ones eBPF programs would stay \
         attached after the agent has ended. Update the node's kernel"
    )]
    TooOld {
        /// As `uname -r` prints it.
        release: String,
    },
    /// The version could not be read.
    #[error("cannot read the kernel's version: {0}")]
    Unreadable(String),
    /// The node's network namespace can't be told from others.
    #[error(
        "cannot tell the node's network namespace from the pods': SO_NETNS_COOKIE failed ({0}), and this process is \
         not in the initial network namespace. Run the agent with hostNetwork, or use Linux 5.14 or newer"
    )]
    NetnsUnknown(io::Error),
}

/// Refuses kernels older than 5.10.
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

/// Raises the soft limit of open files to the hard one: each pod's connection needs one, and many systems set it to 1024.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard));
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!("cannot raise the limit of open files: {error}"),
    }
}

/// The cookie of this process's network namespace, which is the node's; 0 where the kernel can't tell it and this
/// is the initial namespace (the programs then ask for that one).
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

/// `net.core.bpf_jit_enable` is registered for the initial network namespace only (net/core/sysctl_net_core.c).
fn in_initial_netns(proc: &Path) -> bool {
    proc.join("sys/net/core/bpf_jit_enable").exists()
}

/// `SO_NETNS_COOKIE` of a socket; ENOPROTOOPT before Linux 5.14.
fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    option(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE).map(u64::from_ne_bytes)
}

/// Switches fast open off for a listener, also where `net.ipv4.tcp_fastopen` switches it on for all: data in the SYN would
/// be accepted before the packet that carries the caller. Must be called after `listen()`, which sets the queue's length
/// (`inet_listen`, net/ipv4/af_inet.c).
///
/// # Errors
/// Those of `setsockopt(TCP_FASTOPEN)`.
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

/// The first `N` bytes of a socket option.
fn option<const N: usize>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<[u8; N]> {
    let mut value = [0; N];
    let mut length = N as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which is that long.
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
