//! The client of the admin socket of an agent or a guard.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::GuardReport;
use super::socket::{self, SocketError};
use crate::explain::Explanation;
use crate::introspection::Status;

/// How long an agent may take to answer. A dry run may take almost a second for each request.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a guard may take to answer. It has nothing to compute.
const GUARD_TIMEOUT: Duration = Duration::from_secs(2);

/// The path at which a guard reports its state.
pub(super) const GUARD_PATH: &str = "/guard";

/// The reasons why a request to an agent or a guard fails.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No agent listens.
    #[error(
        "no agent answers in {0}: none runs on this machine, or --runtime-dir is another, or this container does not see it; \
         `kubectl exec` into the agent's pod of the node does"
    )]
    NoAgent(PathBuf),
    /// This user is not permitted to open the socket.
    #[error("{0}: permission denied; only root can open the socket")]
    NotAllowed(PathBuf),
    /// The socket cannot be found.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The process that listens does not answer.
    #[error("no answer on {path}: {source}; the log of that process may say why")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The process that listens gives an answer that cannot be used.
    #[error("the process that listens on {path} answers {status}: {body}. It may be of another version")]
    UnexpectedAnswer {
        /// The socket.
        path: PathBuf,
        /// The HTTP status.
        status: u16,
        /// The start of the body.
        body: String,
    },
}

/// An HTTP response.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
}

/// Sends a request to one socket.
///
/// # Errors
/// Returns an error of the socket, or [`ErrorKind::TimedOut`] if there is no answer within the timeout.
pub(super) fn get(socket: &Path, target: &str, timeout: Duration) -> io::Result<Answer> {
    exchange(socket, target, timeout).map_err(|error| match error.kind() {
        // A read that `SO_RCVTIMEO` ends fails with EAGAIN (socket(7)).
        ErrorKind::WouldBlock | ErrorKind::TimedOut => {
            let timeout = humantime::format_duration(timeout).to_string().replace(' ', "");
            io::Error::new(
                ErrorKind::TimedOut,
                format!("it has not answered within {timeout}"),
            )
        }
        _ => error,
    })
}

fn exchange(socket: &Path, target: &str, timeout: Duration) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(format!("GET {target} HTTP/1.0\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer {
        status: status.ok_or(ErrorKind::InvalidData)?,
        body: body.to_owned(),
    })
}

/// Requests the explanations of all pods, or of the pods with a given name (`namespace/name`).
///
/// # Errors
/// If no agent answers.
pub fn explain(runtime_dir: &Path, pod: Option<&str>) -> Result<Vec<Explanation>, ClientError> {
    let target = pod.map_or_else(|| "/explain".to_owned(), |pod| format!("/explain/{pod}"));
    ask(runtime_dir, &target)
}

/// Requests the status of the agent.
///
/// # Errors
/// If no agent answers.
pub fn status(runtime_dir: &Path) -> Result<Status, ClientError> {
    ask(runtime_dir, "/status")
}

/// Sends a request to the agent of this PID namespace. If there is none, tries the other agents of this machine, the
/// youngest first.
fn ask<T: DeserializeOwned>(runtime_dir: &Path, target: &str) -> Result<T, ClientError> {
    let mut last = ClientError::NoAgent(runtime_dir.to_owned());
    for path in socket::candidates(runtime_dir)? {
        let answer = match get(&path, target, AGENT_TIMEOUT) {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                last = ClientError::NotAllowed(path);
                continue;
            }
            Err(source) => return Err(ClientError::NoAnswer { path, source }),
        };
        return read(path, &answer);
    }
    Err(last)
}

fn read<T: DeserializeOwned>(path: PathBuf, answer: &Answer) -> Result<T, ClientError> {
    match serde_json::from_str(&answer.body) {
        Ok(value) if answer.status == 200 => Ok(value),
        _ => Err(ClientError::UnexpectedAnswer {
            path,
            status: answer.status,
            body: answer.body.chars().take(300).collect(),
        }),
    }
}

/// Requests the report of each guard of this machine, including guards in other containers. A guard that runs but
/// does not answer yields an error.
pub fn guards(runtime_dir: &Path) -> Vec<Result<GuardReport, ClientError>> {
    let ask = |path: PathBuf| match get(&path, GUARD_PATH, GUARD_TIMEOUT) {
        Ok(answer) => Some(read(path, &answer)),
        // The guard was killed, or it has ended since the directory was read.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => None,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(Err(ClientError::NotAllowed(path))),
        Err(source) => Some(Err(ClientError::NoAnswer { path, source })),
    };
    socket::guards(runtime_dir).into_iter().filter_map(ask).collect()
}
