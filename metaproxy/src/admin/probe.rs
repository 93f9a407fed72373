//! Queries the health of the agent in this container. The kubelet's exec probes use it, because an HTTP probe would
//! need a port of the node.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::client::get;
use super::socket::{self, SocketError};

/// A kind of probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Probe {
    /// Whether the process answers
    Live,
    /// Whether pods are served
    Ready,
}

impl Probe {
    fn target(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Ready => "/readyz",
        }
    }

    /// Returns how long the agent may take to answer. The kubelet kills an agent that fails the liveness probe, and
    /// pods get no credentials until it runs again. Therefore an agent that is only slow must pass.
    fn timeout(self) -> Duration {
        match self {
            Self::Live => Duration::from_secs(8),
            Self::Ready => Duration::from_millis(1500),
        }
    }
}

/// The reasons why a probe fails.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// No agent or guard has a socket.
    #[error(
        "no agent of this container has a socket in {0}: it has not started yet, or --runtime-dir is another"
    )]
    NoAgent(PathBuf),
    /// The socket cannot be found.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The process that listens does not answer.
    #[error("the agent does not answer on {path}: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The answer is negative, for this reason.
    #[error("{0}")]
    No(String),
}

/// Returns the agent's answer.
///
/// # Errors
/// If the answer is negative, or there is no answer.
pub fn ask(probe: Probe, runtime_dir: &Path) -> Result<String, ProbeError> {
    let mut no_answer = None;
    for path in socket::of_this_namespace(runtime_dir)? {
        match get(&path, probe.target(), probe.timeout()) {
            Ok(answer) if answer.status == 200 => return Ok(answer.body),
            Ok(answer) => return Err(ProbeError::No(answer.body.trim_end().to_owned())),
            // A process that was killed has left this file. The next file may belong to a running process.
            Err(source) if source.kind() == io::ErrorKind::ConnectionRefused => {
                no_answer.get_or_insert(ProbeError::NoAnswer { path, source });
            }
            Err(source) => return Err(ProbeError::NoAnswer { path, source }),
        }
    }
    Err(no_answer.unwrap_or_else(|| ProbeError::NoAgent(runtime_dir.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{AdminSocket, Owner};
    use std::io::{Read as _, Write as _};

    #[test]
    fn a_probe_skips_the_socket_file_of_a_killed_agent_and_reaches_a_running_guard() {
        let dir = tempfile::tempdir().unwrap();
        let (_guard, listener) = AdminSocket::open(dir.path(), Owner::Guard).unwrap();
        listener.set_nonblocking(false).unwrap();
        // The file remains until the socket is dropped, like the file of a process that was killed.
        let (agent, listening) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        drop(listening);
        let asked = socket::of_this_namespace(dir.path()).unwrap();
        assert_eq!(asked.len(), 2, "the agent's file is there: {asked:?}");

        let run = || ask(Probe::Live, dir.path());
        let answered = std::thread::scope(|scope| {
            let probing = scope.spawn(run);
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 256]).unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nok\n").unwrap();
            drop(stream);
            probing.join().unwrap()
        });
        assert_eq!(answered.unwrap(), "ok\n");

        drop(listener);
        let refused = run().unwrap_err();
        assert!(matches!(refused, ProbeError::NoAnswer { .. }), "{refused}");
        drop(agent);
    }

    #[test]
    fn a_process_that_hangs_is_reported_as_a_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let (_agent, _hangs) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        let no_answer = ask(Probe::Ready, dir.path()).unwrap_err().to_string();
        assert!(
            no_answer.contains("it has not answered within 1s500ms"),
            "{no_answer}"
        );
    }
}
