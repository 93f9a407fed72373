//! `metaproxy guard`: the guard as a process of its own, for when no agent runs.

mod report;

use std::path::PathBuf;

use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tracing::info;

pub use self::report::GuardReport;
use crate::admin::{AdminSocket, Owner, SocketError, serve_guard};
use crate::cgroups::{CgroupError, Locator};
use crate::intercept::guard::{Guard, GuardError, GuardMode, GuardState, report_dropped_packets};
use crate::intercept::keep::keep;
use crate::intercept::kernel::{self, KernelError};
use crate::runtime_dir::{Instance, InstanceError, RuntimeDirError, ServedMarker, make_runtime_dir};
use crate::shutdown::{SignalError, stop_signal};
use crate::telemetry::health::{Condition, Health, Part};

/// How often the marker is looked for.
const POLL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(200);

/// As processes of this node see a guard that does not wait for an agent.
pub const GUARD_AT_ONCE: &str = "guard that closes at once";

/// Everything that the command line decides.
#[derive(Debug)]
pub struct Settings {
    /// What it does.
    pub mode: GuardMode,
    /// Whether it closes at once, or when pods have been served since boot.
    pub at_once: bool,
    /// The pods' cgroup, where it is not to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, likewise.
    pub cgroup_root: Option<PathBuf>,
    /// Where agents say that they serve.
    pub runtime_dir: PathBuf,
}

/// Why the guard does not start, or does not go on.
#[derive(Debug, Error)]
pub enum GuardProcessError {
    /// Signals.
    #[error(transparent)]
    Signals(#[from] SignalError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The programs.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The runtime directory.
    #[error(transparent)]
    RuntimeDir(#[from] RuntimeDirError),
    /// What its probes ask.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Other processes of ours.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// A part of it is gone while it runs.
    #[error("a task of the guard has failed; it ends so that it can be started again whole")]
    TaskEnded,
}

/// Keeps pods out until SIGTERM or SIGINT.
///
/// # Errors
/// What makes it impossible.
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
        // What is wrong is found out now, and not only said.
        guard.close()?;
    }
    let (close, closes) = watch::channel(closed);
    let (states, changes) = watch::channel(guard.state(closed));
    let dropping = tokio::spawn(report_dropped_packets(guard.counters()));
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
        _ = keeping => return Err(GuardProcessError::TaskEnded),
        _ = following => return Err(GuardProcessError::TaskEnded),
        _ = dropping => return Err(GuardProcessError::TaskEnded),
        _ = reporting => return Err(GuardProcessError::TaskEnded),
        _ = answering => return Err(GuardProcessError::TaskEnded),
    }
    info!("stopping: pods are no longer kept from the node's metadata service by this guard");
    Ok(())
}

/// Closes the guard when the marker is there, and opens it when it is not.
async fn follow(marker: ServedMarker, at_once: bool, close: watch::Sender<bool>) {
    let mut look = tokio::time::interval(POLL_INTERVAL);
    loop {
        look.tick().await;
        // Where it can't be told, it stays as it is.
        let Ok(is_set) = marker.is_set() else { continue };
        let wanted = at_once || is_set;
        close.send_if_modified(|closed| std::mem::replace(closed, wanted) != wanted);
    }
}

async fn report(mut states: watch::Receiver<GuardState>, health: Health) {
    let mut said = None;
    loop {
        let state = *states.borrow_and_update();
        // An update ends the older guard when the younger one is ready: that must keep pods out by then.
        let waiting = "the pods' cgroup is not there, or cannot be attached to";
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
                    "guard open: no agent has served pods since the node booted, or one only observes them (--close \
                     at-once does not wait for one)"
                ),
                GuardState::Waiting => {
                    info!("guard waiting for the pods' cgroup, or for what it can attach to")
                }
            }
        }
        if states.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
