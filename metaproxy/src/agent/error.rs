//! What keeps the agent from starting, or ends it.

use thiserror::Error;

use crate::admin::SocketError;
use crate::apiserver::ConnectError;
use crate::cgroups::CgroupError;
use crate::credentials::sts::StsError;
use crate::imds::token::TokenKeyError;
use crate::intercept::attachment::AttachError;
use crate::intercept::guard::GuardError;
use crate::intercept::kernel::KernelError;
use crate::intercept::listener::ListenError;
use crate::intercept::object::ProgramsError;
use crate::pods::manifests::ManifestsError;
use crate::runtime_dir::{InstanceError, RuntimeDirError};
use crate::shutdown::SignalError;

/// Why the agent does not start, or does not go on. Nothing is attached then.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The manifests.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// The API server.
    #[error(transparent)]
    ApiServer(#[from] ConnectError),
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The thread of the admin server.
    #[error("cannot start the admin server's thread: {0}; check the limits on threads and file descriptors")]
    AdminThread(#[source] std::io::Error),
    /// The token key.
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    /// STS.
    #[error(transparent)]
    Sts(#[from] StsError),
    /// The listeners.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// Attaching them.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// An internal task has ended while the agent runs. It has this name.
    #[error("internal task `{0}` exited; stopping so the supervisor restarts the agent")]
    TaskEnded(&'static str),
    /// Signals.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The runtime directory.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// Other processes of ours.
    #[error(transparent)]
    Instance(#[from] InstanceError),
}
