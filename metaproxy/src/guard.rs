//! Runs the guard as a separate process (`metaproxy guard`), which keeps pods from the node's metadata service while
//! no agent serves them.

use std::path::PathBuf;

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tracing::info;

use crate::admin::{AdminSocket, GuardReport, Owner, SocketError, serve_guard};
use crate::cgroups::{CgroupError, Locator};
use crate::intercept::guard::{Guard, GuardError, GuardMode, GuardState, report_dropped_packets};
use crate::intercept::keep::keep;
use crate::intercept::kernel::{self, KernelError};
use crate::runtime_dir::{Instance, InstanceError, RuntimeDirError, ServedMarker, make_runtime_dir};
use crate::shutdown::{SignalError, stop_signal};
use crate::telemetry::health::{Condition, Health, Part};

/// The time between two reads of the marker.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

/// The kind under which a guard that does not wait for an agent is registered.
pub const GUARD_AT_ONCE: &str = "guard that closes at once";

/// The settings of a guard process from the command line.
#[derive(Debug)]
pub struct Settings {
    /// The connections that the guard refuses.
    pub mode: GuardMode,
    /// Whether the guard closes at once, or only if pods have been served since boot.
    pub at_once: bool,
    /// The pods' cgroup, or `None` if the guard has to find it.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, or `None` if the guard has to find it.
    pub cgroup_root: Option<PathBuf>,
    /// The directory in which agents mark that they serve pods.
    pub runtime_dir: PathBuf,
}

/// The reasons why the guard does not start or stops running.
#[derive(Debug, Error)]
pub enum GuardProcessError {
    /// Signals cannot be handled.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The programs cannot be loaded or attached.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// The socket for probes cannot be opened.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Another process of metaproxy excludes this one.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The internal task with this name has ended.
    #[error("internal task `{0}` exited; stopping so that the supervisor restarts the guard")]
    TaskEnded(&'static str),
}

/// Keeps pods from the node's metadata service until SIGTERM or SIGINT.
///
/// # Errors
/// If the guard cannot be started, or one of its tasks ends.
pub async fn run(settings: Settings) -> Result<(), GuardProcessError> {
    let stop = stop_signal()?;
    kernel::check_version()?;
    let node_netns = kernel::node_netns_cookie()?;
    let locator = Locator::new(settings.cgroup_root.as_deref(), settings.cgroup.as_deref())?;
    make_runtime_dir(&settings.runtime_dir)?;
    let what = if settings.at_once { GUARD_AT_ONCE } else { "guard" };
    let _instance = Instance::register(&settings.runtime_dir, what)?;
    let Some(mut guard) = Guard::load(settings.mode, node_netns, locator).await? else {
        return Ok(());
    };
    let (_socket, probes) = AdminSocket::open(&settings.runtime_dir, Owner::Guard)?;
    let health = Health::starting([Part::Guard]);
    let marker = ServedMarker::of(&settings.runtime_dir);
    let closed = settings.at_once || marker.is_set().is_ok_and(|is_set| is_set);
    if closed {
        // An error at the start ends the process. Later errors are only logged.
        guard.close()?;
    }
    let (close, closes) = watch::channel(closed);
    let (states, changes) = watch::channel(guard.state(closed));
    let dropped = tokio::spawn(report_dropped_packets(guard.counters()));
    let (level, seen) = (guard.level().to_string(), changes.clone());
    let own_report = move || GuardReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: level.clone(),
        state: *seen.borrow(),
    };
    let reporting = tokio::spawn(report(changes, health.clone()));
    let answering = tokio::spawn(serve_guard(health, own_report, probes));
    let (_stop, stopped) = oneshot::channel();
    let keeping = tokio::spawn(keep(guard.switched_by(closes), states, stopped));
    let following = tokio::spawn(follow(marker, settings.at_once, close));
    tokio::select! {
        () = stop => {}
        _ = keeping => return Err(GuardProcessError::TaskEnded("attachment")),
        _ = following => return Err(GuardProcessError::TaskEnded("served marker")),
        _ = dropped => return Err(GuardProcessError::TaskEnded("dropped packets")),
        _ = reporting => return Err(GuardProcessError::TaskEnded("health")),
        _ = answering => return Err(GuardProcessError::TaskEnded("probes")),
    }
    info!("stopping: pods are no longer kept from the node's metadata service by this guard");
    Ok(())
}

/// Closes the guard when the marker is set, and opens it when it is cleared.
async fn follow(marker: ServedMarker, at_once: bool, close: watch::Sender<bool>) {
    let mut look = tokio::time::interval(POLL_INTERVAL);
    loop {
        look.tick().await;
        // If the marker cannot be read, the guard keeps its state.
        let Ok(is_set) = marker.is_set() else { continue };
        let wanted = at_once || is_set;
        close.send_if_modified(|closed| std::mem::replace(closed, wanted) != wanted);
    }
}

/// Reports each state to health, and logs changes.
async fn report(mut states: watch::Receiver<GuardState>, health: Health) {
    let mut said = None;
    loop {
        let state = *states.borrow_and_update();
        // During an update, the old guard is stopped when the new one is ready. Therefore a guard that does not
        // refuse connections yet must not report readiness.
        let waiting = "the pods' cgroup does not exist, or programs cannot be attached to it";
        health.set(
            Part::Guard,
            state.condition(Condition::Failing(waiting.to_owned())),
        );
        let kind = std::mem::discriminant(&state);
        if said.replace(kind) != Some(kind) {
            match state {
                GuardState::Closed { .. } => {
                    info!("guard closed: pods are kept from the node's metadata service");
                }
                GuardState::Open => info!(
                    "guard open: no agent has served pods since the node booted, or the agent only observes them (--close \
                     at-once does not wait for an agent)"
                ),
                GuardState::Waiting => {
                    info!("guard waiting until it can be attached to the pods' cgroup")
                }
            }
        }
        if states.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
