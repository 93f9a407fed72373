//! `metaproxy probe`: asks the agent of this container how it is doing. What an exec probe of the kubelet runs, as no
//! port of the node is needed for it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use super::asking::get;
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
    let answered = get(&path, question.target(), question.patience())
        .map_err(|source| ProbeError::Silent { path, source })?;
    if answered.status == 200 {
        Ok(answered.body)
    } else {
        Err(ProbeError::No(answered.body.trim_end().to_owned()))
    }
}
