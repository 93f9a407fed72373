//! The admin socket of an agent or a guard, in the runtime directory that all instances share.
//!
//! The name of the socket contains the PID namespace and the process id. Therefore a probe in the agent's container
//! finds the socket of that agent without configuration, although the process id is 1 in every container.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use thiserror::Error;

/// The error of a socket that cannot be opened or found.
#[derive(Debug, Error)]
#[error("--runtime-dir: cannot listen on {path}: {source}")]
pub struct SocketError {
    path: PathBuf,
    source: io::Error,
}

/// The time within which a process starts to listen on a socket file that it has made. An older file on which no
/// process listens is stale.
const BIND_TIMEOUT: Duration = Duration::from_secs(10);

/// The kind of process that owns a socket. The file's name begins with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An agent. Probes and commands connect to it.
    Agent,
    /// A guard that runs as a separate process. Probes and `doctor` connect to it.
    Guard,
}

impl Owner {
    fn prefix(self) -> &'static str {
        match self {
            Self::Agent => "agent-",
            Self::Guard => "guard-",
        }
    }
}

/// The file of a listening socket. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
}

impl AdminSocket {
    /// Removes the files that killed processes have left, then listens on a new socket in an existing directory. The
    /// listener is nonblocking.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(runtime_dir: &Path, owner: Owner) -> Result<(Self, UnixListener), SocketError> {
        let path = runtime_dir.join(format!("{}{}.sock", own_prefix(owner)?, std::process::id()));
        for stale in sockets(runtime_dir, owner.prefix()) {
            // The process that has just made a file may not listen yet.
            let is_old = fs::metadata(&stale)
                .and_then(|file| file.modified())
                .is_ok_and(|made| made.elapsed().is_ok_and(|age| age > BIND_TIMEOUT));
            let is_dead = is_old
                && UnixStream::connect(&stale)
                    .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            if is_dead || stale == path {
                let _ = fs::remove_file(stale);
            }
        }
        match listen(&path) {
            Ok(listener) => Ok((Self { path }, listener)),
            Err(source) => Err(SocketError { path, source }),
        }
    }
}

/// Listens at a path to which only root may connect, independent of the mode of the directory. The file gets the mode
/// of the socket (`unix_bind`, net/unix/af_unix.c). A umask would have the same effect, but all threads share it, and
/// another thread may create a file at the same time.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket::bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    socket::listen(&socket, Backlog::MAXCONN)?;
    Ok(UnixListener::from(socket))
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Lists the sockets of this process's PID namespace: agents before guards, and the youngest first in each group.
pub(super) fn of_this_namespace(runtime_dir: &Path) -> Result<Vec<PathBuf>, SocketError> {
    let made = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    let mut all = Vec::new();
    for owner in [Owner::Agent, Owner::Guard] {
        let mut found = sockets(runtime_dir, &own_prefix(owner)?);
        found.sort_by_key(|path| std::cmp::Reverse(made(path)));
        all.extend(found);
    }
    Ok(all)
}

/// Lists the sockets of agents: those of this process's PID namespace first, and the youngest first in each group.
pub(super) fn candidates(runtime_dir: &Path) -> Result<Vec<PathBuf>, SocketError> {
    let own = own_prefix(Owner::Agent)?;
    let mut found = sockets(runtime_dir, Owner::Agent.prefix());
    found.sort_by_key(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let made = fs::metadata(path).and_then(|file| file.modified()).ok();
        (!name.starts_with(&own), std::cmp::Reverse(made))
    });
    Ok(found)
}

/// Lists the sockets of guards, of every PID namespace.
pub(super) fn guards(runtime_dir: &Path) -> Vec<PathBuf> {
    sockets(runtime_dir, Owner::Guard.prefix())
}

/// Returns the prefix of the names of this PID namespace's sockets.
fn own_prefix(owner: Owner) -> Result<String, SocketError> {
    let path = PathBuf::from("/proc/self/ns/pid");
    match fs::metadata(&path) {
        Ok(namespace) => Ok(format!("{}{}-", owner.prefix(), namespace.ino())),
        Err(source) => Err(SocketError { path, source }),
    }
}

fn sockets(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".sock")
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_from_its_namespace_and_removed_by_its_agent_or_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let dead = dir.path().join("agent-1-1.sock");
        drop(UnixListener::bind(&dead).unwrap());
        let (socket, _listener) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        assert!(dead.exists(), "it may be about to be listened to");
        let long_ago = std::time::SystemTime::now() - 2 * BIND_TIMEOUT;
        let times =
            nix::sys::time::TimeSpec::from_duration(long_ago.duration_since(std::time::UNIX_EPOCH).unwrap());
        let here = nix::fcntl::AT_FDCWD;
        let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        nix::sys::stat::utimensat(here, &dead, &times, &times, follow).unwrap();
        let own = socket.path.clone();
        drop(AdminSocket::open(dir.path(), Owner::Agent));
        assert!(!dead.exists(), "nobody listens there any more");
        let (socket, _listener) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        assert_eq!(of_this_namespace(dir.path()).unwrap(), [own]);
        assert_eq!(fs::metadata(&socket.path).unwrap().mode() & 0o777, 0o600);
        drop(socket);
        assert!(of_this_namespace(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_probe_prefers_the_agent_of_its_namespace_to_the_guard() {
        let dir = tempfile::tempdir().unwrap();
        let asked = || of_this_namespace(dir.path()).unwrap();
        let (guard, _probed) = AdminSocket::open(dir.path(), Owner::Guard).unwrap();
        assert_eq!(asked(), std::slice::from_ref(&guard.path));
        assert!(
            candidates(dir.path()).unwrap().is_empty(),
            "commands ask agents only"
        );
        let (agent, _asked) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        assert_eq!(asked(), [agent.path.clone(), guard.path.clone()]);
    }
}
