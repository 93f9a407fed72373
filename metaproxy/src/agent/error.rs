//! The errors that keep the agent from starting or end it.

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

/// The reasons why the agent does not start or stops running. When it exits, the kernel detaches its programs.
#[derive(Debug, Error)]
pub enum StartError {
    /// The kernel lacks a required feature.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The manifests cannot be read.
    #[error(transparent)]
    Manifests(#[from] ManifestsError),
    /// The API server cannot be reached by the given configuration.
    #[error(transparent)]
    ApiServer(#[from] ConnectError),
    /// The admin socket cannot be listened on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The admin server's thread cannot be started.
    #[error("cannot start the admin server's thread: {0}; check the limits on threads and file descriptors")]
    AdminThread(#[source] std::io::Error),
    /// The key of session tokens cannot be used.
    #[error(transparent)]
    TokenKey(#[from] TokenKeyError),
    /// STS cannot be called.
    #[error(transparent)]
    Sts(#[from] StsError),
    /// The listeners cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The kernel refuses the programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The programs cannot be attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The internal task with this name has ended while the agent runs.
    #[error("internal task `{0}` exited; stopping so the supervisor restarts the agent")]
    TaskEnded(&'static str),
    /// Signals cannot be handled.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// The guard cannot be closed.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The agent cannot be registered in the runtime directory.
    #[error(transparent)]
    Instance(#[from] InstanceError),
}
