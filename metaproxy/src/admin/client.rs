//! Asking an agent, or a guard, over its socket.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::socket::{self, SocketError};
use crate::explain::Explanation;
use crate::guard::GuardReport;
use crate::introspection::Status;

/// For the agent to put an answer together; what it asks in a pod's place may take most of a second each.
const AGENT_TIMEOUT: Duration = Duration::from_secs(10);

/// For a guard to answer, which has nothing to put together.
const GUARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Where a guard answers what it reports of itself.
pub(super) const GUARD_PATH: &str = "/guard";

/// Why an agent or a guard has not told.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no agent.
    #[error(
        "no agent answers in {0}: none runs on this machine, or --runtime-dir is another, or this container does not see it; \
         `kubectl exec` into the agent's pod of the node does"
    )]
    NoAgent(PathBuf),
    /// There may be one, for others.
    #[error("{0}: permission denied; the socket is root's")]
    NotAllowed(PathBuf),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// It does not answer.
    #[error("no answer on {path}: {source}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It answers something else.
    #[error("the process that listens on {path} says {status}: {body}. It may be of another version")]
    UnexpectedAnswer {
        /// The socket.
        path: PathBuf,
        /// HTTP status.
        status: u16,
        /// What it says.
        body: String,
    },
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    pub body: String,
}

/// Asks on one socket, within this time.
///
/// # Errors
/// Those of the socket; [`ErrorKind::TimedOut`] in words if there is no answer in time.
pub(super) fn get(socket: &Path, target: &str, timeout: Duration) -> io::Result<Answer> {
    exchange(socket, target, timeout).map_err(|error| match error.kind() {
        // What `SO_RCVTIMEO` makes of a read (socket(7)).
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

/// Explanations of all pods, or of those with a name (`namespace/name`).
///
/// # Errors
/// Where no agent tells.
pub fn explain(runtime_dir: &Path, pod: Option<&str>) -> Result<Vec<Explanation>, ClientError> {
    let target = pod.map_or_else(|| "/explain".to_owned(), |pod| format!("/explain/{pod}"));
    ask(runtime_dir, &target)
}

/// How the agent is doing.
///
/// # Errors
/// Where no agent tells.
pub fn status(runtime_dir: &Path) -> Result<Status, ClientError> {
    ask(runtime_dir, "/status")
}

/// The agent of this PID namespace; where there is none, whichever of this machine answers, the youngest first.
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

/// What each guard of this machine reports of itself, those of other containers too; or why one that runs does not.
pub fn guards(runtime_dir: &Path) -> Vec<Result<GuardReport, ClientError>> {
    let ask = |path: PathBuf| match get(&path, GUARD_PATH, GUARD_TIMEOUT) {
        Ok(answer) => Some(read(path, &answer)),
        // Its process was killed, or has ended since the directory was read.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => None,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Some(Err(ClientError::NotAllowed(path))),
        Err(source) => Some(Err(ClientError::NoAnswer { path, source })),
    };
    socket::guards(runtime_dir).into_iter().filter_map(ask).collect()
}
