//! `metaproxy probe`: asks the agent of this container how it is doing. What an exec probe of the kubelet runs, as no
//! port of the node is needed for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::client::get;
use super::socket::{self, SocketError};

/// What is asked.
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

    /// For the agent to answer. One that is only slow must not be killed for that: its pods would be left alone.
    fn timeout(self) -> Duration {
        match self {
            Self::Live => Duration::from_secs(8),
            Self::Ready => Duration::from_millis(1500),
        }
    }
}

/// Why the answer is no.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// There is no agent.
    #[error(
        "no agent of this container has a socket in {0}: it has not started yet, or --runtime-dir is another"
    )]
    NoAgent(PathBuf),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It does not answer.
    #[error("the agent does not answer on {path}: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It says no.
    #[error("{0}")]
    No(String),
}

/// What the agent says.
///
/// # Errors
/// Where it says no, or nothing.
pub fn ask(probe: Probe, runtime_dir: &Path) -> Result<String, ProbeError> {
    let mut no_answer = None;
    for path in socket::of_this_namespace(runtime_dir)? {
        match get(&path, probe.target(), probe.timeout()) {
            Ok(answer) if answer.status == 200 => return Ok(answer.body),
            Ok(answer) => return Err(ProbeError::No(answer.body.trim_end().to_owned())),
            // Its process was killed, and left the file behind. The next one may be that of a process that runs.
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
    fn a_file_that_a_killed_agent_left_does_not_hide_a_guard_that_runs() {
        let dir = tempfile::tempdir().unwrap();
        let (_guard, listener) = AdminSocket::open(dir.path(), Owner::Guard).unwrap();
        listener.set_nonblocking(false).unwrap();
        // Its file is there until the socket is dropped, as that of a process that was killed.
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
    fn a_process_that_hangs_is_said_to_have_not_answered_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let (_agent, _hangs) = AdminSocket::open(dir.path(), Owner::Agent).unwrap();
        let no_answer = ask(Probe::Ready, dir.path()).unwrap_err().to_string();
        assert!(
            no_answer.contains("it has not answered within 1s500ms"),
            "{no_answer}"
        );
    }
}
