//! `metaproxy probe`: asks the agent of this container how it is doing. What an exec probe of the kubelet runs, as no
//! port of the node is needed for it.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::socket::{self, SocketError};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether it runs
    Live,
    /// Whether pods are served
    Ready,
}

impl Question {
    fn target(self) -> &'static str {
        match self {
            Self::Live => "/healthz",
            Self::Ready => "/readyz",
        }
    }

    /// For the agent to answer. One that is only slow must not be killed for that: its pods would be left alone.
    fn patience(self) -> Duration {
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
    Silent {
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
pub fn ask(question: Question, runtime_dir: &Path) -> Result<String, ProbeError> {
    let Some(path) = socket::newest_of_this_namespace(runtime_dir)? else {
        return Err(ProbeError::NoAgent(runtime_dir.to_owned()));
    };
    let answer = exchange(&path, question).map_err(|source| ProbeError::Silent { path, source })?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if head.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(ProbeError::No(body.trim_end().to_owned()))
    }
}

fn exchange(path: &Path, question: Question) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    let (target, patience) = (question.target(), Some(question.patience()));
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    stream.write_all(format!("GET {target} HTTP/1.0\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
