//! Keeps pods from the node's metadata service while no agent redirects them.
//!
//! The guard's connect programs replace a metadata address by its sentinel, which agents accept instead of the
//! address. So any number of guards and agents work side by side in any order. Connect hooks do not see raw sockets,
//! packet sockets and connections that were opened earlier. Their packets are dropped at the uplinks or, before Linux
//! 6.6, at the pods' sockets. Sockets of the node's own network namespace are never touched.

pub mod programs;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::time::Duration;

use metaproxy_common::layout::GuardCounter;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use self::programs::GuardPrograms;
pub use self::programs::{GuardCounters, GuardLevel, GuardMode};
use self::uplinks::UplinkMonitor;
pub use self::uplinks::UplinksError;
use super::attachment::{AttachError, Reattachments};
use super::keep::{Keep, LastFailure};
use super::link::Link;
use super::object::{CgroupLinks, ProgramsError};
use crate::cgroups::{Locator, PodsCgroup};
use crate::telemetry::health::Condition;

/// The guard's programs and their attachment. Dropping this value lets pods through.
#[derive(Debug)]
pub struct Guard {
    programs: GuardPrograms,
    locator: Locator,
    pods: Option<(PodsCgroup, CgroupLinks)>,
    uplinks: Option<UplinkMonitor>,
    guarded: BTreeMap<u32, Link>,
    reattachments: Reattachments,
    failure: LastFailure,
    uplinks_failure: LastFailure,
}

/// The state of a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GuardState {
    /// It lets all connections pass, because it should be open.
    Open,
    /// It should keep pods from the metadata service, but cannot do so (yet).
    Waiting,
    /// It keeps pods from the metadata service.
    Closed {
        /// The number of times that another process has detached it recently.
        #[serde(rename = "mended")]
        reattached: u32,
        /// The id of the cgroup whose pods it keeps from the metadata service.
        cgroup: u64,
    },
}

impl GuardState {
    /// Returns the condition for health. `waiting` is the condition of a guard in state [`Self::Waiting`].
    pub fn condition(self, waiting: Condition) -> Condition {
        match self {
            Self::Open | Self::Closed { reattached: 0, .. } => Condition::Fine,
            Self::Closed { reattached, .. } => Condition::Degraded(format!(
                "another program has detached the guard {reattached} times; it was attached again"
            )),
            Self::Waiting => waiting,
        }
    }
}

impl Guard {
    /// Loads the programs, and begins to monitor the uplinks. Nothing is attached before [`Self::close`]. Returns
    /// `None` for [`GuardMode::Off`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub async fn load(
        mode: GuardMode,
        node_netns: u64,
        locator: Locator,
    ) -> Result<Option<Self>, GuardError> {
        let Some(programs) = GuardPrograms::load(mode, node_netns)? else {
            return Ok(None);
        };
        let uplinks = match programs.level() {
            GuardLevel::Uplinks => Some(UplinkMonitor::start().await?),
            GuardLevel::Sockets | GuardLevel::Connect => None,
        };
        info!("guard: {}", programs.level());
        Ok(Some(Self {
            programs,
            locator,
            pods: None,
            uplinks,
            guarded: BTreeMap::new(),
            reattachments: Reattachments::default(),
            failure: LastFailure::default(),
            uplinks_failure: LastFailure::default(),
        }))
    }

    /// Returns what the guard covers on this kernel.
    pub fn level(&self) -> GuardLevel {
        self.programs.level()
    }

    /// Returns the counters of refused connections and dropped packets.
    pub fn counters(&self) -> GuardCounters {
        self.programs.counters()
    }

    /// Attaches all programs that are not attached. If the pods' cgroup does not exist, its programs are attached by
    /// a later call. A failure at an uplink is logged and not returned, because the other programs work without it.
    ///
    /// # Errors
    /// If the kernel refuses, or the cgroup tree cannot be used.
    pub fn close(&mut self) -> Result<(), GuardError> {
        let result = self.close_uplinks();
        self.uplinks_failure
            .record("guard: packets are not dropped", result);
        self.close_pods()
    }

    fn close_pods(&mut self) -> Result<(), GuardError> {
        if let Some((pods, links)) = &mut self.pods {
            if pods.is_current() {
                let reattached = self.programs.reattach(links, pods.dir())?;
                if !reattached.is_empty() {
                    self.reattachments.note(&reattached);
                }
                return Ok(());
            }
            warn!("guard: the pods' cgroup was removed; waiting for it to be made again");
            self.pods = None;
        }
        if let Some(pods) = self.locator.locate().map_err(AttachError::from)? {
            let links = self.programs.attach(pods.dir())?;
            info!(cgroup = %pods.path().display(), "guard: attached to the pods' cgroup");
            self.pods = Some((pods, links));
        }
        Ok(())
    }

    fn close_uplinks(&mut self) -> Result<(), ProgramsError> {
        let Some(uplinks) = &mut self.uplinks else {
            return Ok(());
        };
        let wanted = uplinks.now();
        let mut detached = BTreeSet::new();
        self.guarded.retain(|index, link| {
            let stays = wanted.contains_key(index);
            if stays && !link.is_attached() {
                detached.insert(*index);
            }
            stays && !detached.contains(index)
        });
        let mut result = Ok(());
        for (index, uplink) in &wanted {
            if self.guarded.contains_key(index) {
                continue;
            }
            match self.programs.attach_to(*index, uplink) {
                Ok(link) => {
                    self.guarded.insert(*index, link);
                    if !detached.contains(index) {
                        info!(uplink = %uplink.name, "guard: attached to an uplink");
                    }
                }
                // The interface has been removed meanwhile. The monitor of uplinks gets a notice of that.
                Err(ProgramsError::Attach { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
                    detached.remove(index);
                }
                Err(error) => result = Err(error),
            }
        }
        if !detached.is_empty() {
            self.reattachments.note(&["the guard at an uplink"]);
        }
        result
    }

    fn open(&mut self) {
        if self.pods.take().is_some() || !self.guarded.is_empty() {
            info!("guard: open; pods reach the node's metadata service");
        }
        self.guarded.clear();
    }

    /// Returns the guard's state. `closed` tells whether it should be closed.
    pub fn state(&self, closed: bool) -> GuardState {
        match &self.pods {
            _ if !closed => GuardState::Open,
            Some((pods, _)) if self.failure.is_none() && self.uplinks_failure.is_none() => {
                GuardState::Closed {
                    reattached: self.reattachments.recently(),
                    cgroup: pods.id(),
                }
            }
            _ => GuardState::Waiting,
        }
    }

    /// Makes a guard that keeps pods from the metadata service while `closed` is true. If all senders are dropped,
    /// the guard stays as it is.
    pub fn switched_by(self, closed: watch::Receiver<bool>) -> SwitchedGuard {
        SwitchedGuard { guard: self, closed }
    }
}

/// A guard that is closed while a flag is true. Dropping this value lets pods through.
#[derive(Debug)]
pub struct SwitchedGuard {
    guard: Guard,
    closed: watch::Receiver<bool>,
}

impl Keep for SwitchedGuard {
    type State = GuardState;

    fn check(&mut self) -> GuardState {
        let closed = *self.closed.borrow_and_update();
        if closed {
            let result = self.guard.close();
            self.guard.failure.record("pods are not kept out", result);
        } else {
            self.guard.open();
        }
        self.guard.state(closed)
    }

    async fn changed(&mut self) -> ControlFlow<()> {
        tokio::select! {
            Ok(()) = self.closed.changed() => ControlFlow::Continue(()),
            goes_on = changed(&mut self.guard.uplinks) => {
                if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            }
        }
    }
}

async fn changed(uplinks: &mut Option<UplinkMonitor>) -> bool {
    match uplinks {
        Some(uplinks) => uplinks.changed().await,
        None => std::future::pending().await,
    }
}

/// Logs that packets were dropped, at most once an hour. The log line appears some time after the first packet.
pub async fn report_dropped_packets(counters: GuardCounters) {
    const POLL_INTERVAL: Duration = Duration::from_secs(10);
    const REPORT_INTERVAL: Duration = Duration::from_secs(3600);
    let mut reported = 0;
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let dropped = counters.total(GuardCounter::Packets);
        if dropped == reported {
            continue;
        }
        warn!(
            dropped,
            "guard: packets to the node's metadata service were dropped; they come from raw sockets, from connections \
             opened earlier, or from containers that are no pods"
        );
        reported = dropped;
        tokio::time::sleep(REPORT_INTERVAL).await;
    }
}

/// The reasons why a guard cannot keep pods from the metadata service.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The kernel refuses the programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
    /// The cgroup tree cannot be used.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// The network interfaces cannot be monitored.
    #[error(transparent)]
    Uplinks(#[from] UplinksError),
    /// The socket that marks the node's network namespace cannot be opened.
    #[error("cannot mark the node's network namespace: {0}")]
    Marker(String),
}
