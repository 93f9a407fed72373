//! Keeps the programs attached to the pods' cgroup, which may not exist yet, and may be removed and created again.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tracing::{info, warn};

use super::keep::{Keep, LastFailure};
use super::object::ProgramsError;
use super::pod_maps::{ListedPods, PodMaps};
use super::programs::{Links, PodsCgroupIds, Programs};
use crate::cgroups::CurrentPods;
use crate::cgroups::{CgroupError, Locator, NotAPod, OwnCgroup, PodsCgroup};

/// The programs, and their attachment to the pods' cgroup.
#[derive(Debug)]
pub struct Attachment {
    programs: Programs,
    locator: Locator,
    listener: Option<ListenerLink>,
    pods: CurrentPods,
    pods_cgroup_ids: PodsCgroupIds,
    lists: PodMaps,
    wanted: watch::Receiver<ListedPods>,
    links: Option<Links>,
    failure: LastFailure,
    reattachments: Reattachments,
}

/// The program that verifies callers, attached to the agent's own cgroup. Dropping this value detaches it.
#[derive(Debug)]
pub struct ListenerLink {
    cgroup: OwnCgroup,
    links: Links,
}

impl ListenerLink {
    /// Attaches the program. This must happen before listeners are opened, because the program must see them listen.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach(programs: &Programs, cgroup: OwnCgroup) -> Result<Self, ProgramsError> {
        let links = programs.attach_listener(cgroup.dir())?;
        Ok(Self { cgroup, links })
    }
}

/// The state of the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachmentState {
    /// The pods' cgroup does not exist (any more), or programs cannot be attached to it.
    Waiting,
    /// The programs are attached.
    Attached,
    /// The programs are attached again, after another process had detached one.
    Reattached {
        /// The number of times that this happened recently.
        times: u32,
    },
}

/// Counts attachments that another process has ended.
#[derive(Debug, Default)]
pub(super) struct Reattachments {
    times: u32,
    last: Option<Instant>,
}

impl Reattachments {
    /// The time for which health is degraded after a detached link was attached again.
    const DEGRADED_TIME: Duration = Duration::from_secs(600);

    pub(super) fn note(&mut self, programs: &[&str]) {
        self.times = self.recently() + 1;
        self.last = Some(Instant::now());
        // The other process may detach again and again.
        if self.times.is_power_of_two() {
            warn!(
                times = self.times,
                "another process has detached {}; attached again. `bpftool link` shows what is attached now",
                programs.join(", ")
            );
        }
    }

    pub(super) fn recently(&self) -> u32 {
        let is_recent = self.last.is_some_and(|last| last.elapsed() < Self::DEGRADED_TIME);
        if is_recent { self.times } else { 0 }
    }
}

impl Attachment {
    /// Makes an attachment that attaches nothing to the pods' cgroup before [`Self::start`]. `listener` is `None` if
    /// pods are only observed. `wanted` has the wanted content of the kernel's maps of pods.
    pub fn new(
        programs: Programs,
        locator: Locator,
        listener: Option<ListenerLink>,
        pods: CurrentPods,
        pods_cgroup_ids: PodsCgroupIds,
        lists: PodMaps,
        wanted: watch::Receiver<ListedPods>,
    ) -> Self {
        Self {
            programs,
            locator,
            listener,
            pods,
            pods_cgroup_ids,
            lists,
            wanted,
            links: None,
            failure: LastFailure::default(),
            reattachments: Reattachments::default(),
        }
    }

    /// Returns the pods' cgroup, if it exists.
    pub fn pods(&self) -> CurrentPods {
        Arc::clone(&self.pods)
    }

    /// Attaches at once if the cgroup exists, so that start-up fails here and not later.
    ///
    /// # Errors
    /// If the kernel refuses, or the cgroup tree cannot be used. A cgroup that does not exist is not an error.
    pub fn start(&mut self) -> Result<AttachmentState, AttachError> {
        match self.locator.locate()? {
            Some(pods) => self.attach(pods).map(|()| AttachmentState::Attached),
            None => {
                self.locator.check_v1(Path::new("/sys/fs/cgroup"))?;
                info!("waiting for the pods' cgroup ({})", self.locator.describe());
                Ok(AttachmentState::Waiting)
            }
        }
    }

    /// Attaches the programs last. Callers can then be looked up before the first connection is redirected, and the
    /// kernel's maps have the pods' cgroup and the lists before the programs read them.
    fn attach(&mut self, pods: PodsCgroup) -> Result<(), AttachError> {
        pods.check_lookup()?;
        self.pods_cgroup_ids.set(pods.ids())?;
        let pods = Arc::new(pods);
        *self.pods.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pods));
        self.list();
        self.links = Some(self.programs.attach(pods.dir())?);
        info!(cgroup = %pods.path().display(), "attached to the pods' cgroup");
        Ok(())
    }

    /// Detaches the programs that redirect. The programs that carry and verify callers stay attached until this value
    /// is dropped.
    pub fn stop_redirecting(&mut self) {
        if let Some(links) = &mut self.links {
            links.stop_redirecting();
        }
    }

    fn attach_missing(&mut self) -> Result<(), AttachError> {
        let mut reattached = match &mut self.listener {
            Some(ListenerLink { cgroup, links }) => self.programs.reattach(links, cgroup.dir())?,
            None => Vec::new(),
        };
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(links) = &mut self.links {
            if let Some(pods) = pods.filter(|pods| pods.is_current()) {
                reattached.extend(self.programs.reattach(links, pods.dir())?);
                // A kubelet may create the cgroups of the QoS classes later.
                self.pods_cgroup_ids.set(pods.ids())?;
                if !reattached.is_empty() {
                    self.reattachments.note(&reattached);
                }
                return Ok(());
            }
            warn!("the pods' cgroup was removed; waiting for it to be made again");
            self.links = None;
            *self.pods.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        match self.locator.locate()? {
            Some(pods) => self.attach(pods),
            None => Ok(()),
        }
    }

    fn list(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner).clone();
        self.lists.update(&wanted, pods.as_deref());
    }

    fn state(&self) -> AttachmentState {
        match &self.links {
            Some(_) if self.failure.is_none() => match self.reattachments.recently() {
                0 => AttachmentState::Attached,
                times => AttachmentState::Reattached { times },
            },
            _ => AttachmentState::Waiting,
        }
    }
}

impl Keep for Attachment {
    type State = AttachmentState;

    fn check(&mut self) -> AttachmentState {
        let result = self.attach_missing();
        self.failure.record("pods are not intercepted", result);
        self.list();
        self.state()
    }

    async fn changed(&mut self) -> ControlFlow<()> {
        // Lists need no check of the links. The task that computes them ends with the agent, so a closed channel
        // needs no other handling.
        while self.wanted.changed().await.is_ok() {
            self.list();
        }
        std::future::pending().await
    }
}

/// The reasons why programs could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The cgroup tree cannot be used.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Callers cannot be looked up.
    #[error("callers could not be identified: {0}")]
    Lookup(#[from] NotAPod),
    /// The kernel refuses the programs.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
}
