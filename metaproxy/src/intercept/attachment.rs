//! Keeps the programs attached to the pods' cgroup: it may not exist yet, and may be removed and made again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use aya::maps::{HashMap, MapData};
use tokio::sync::{oneshot, watch};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use super::caller::CurrentPods;
use super::cgroups::{CgroupError, Locator, NotAPod, PodsCgroup};
use super::programs::{Links, Programs, ProgramsError};
use crate::pods::PodUid;

/// How often the pods' cgroup is looked at: one `stat` each time, and one for each listed hostNetwork pod. A link to a
/// removed cgroup stays alive and does nothing, so nobody would tell.
const LOOK: Duration = Duration::from_millis(200);

/// The programs on their way into the kernel and out again.
#[derive(Debug)]
pub struct Attachment {
    programs: Programs,
    locator: Locator,
    pods: CurrentPods,
    host_pods: HashMap<MapData, u64, u8>,
    wanted: watch::Receiver<BTreeSet<PodUid>>,
    listed: BTreeSet<u64>,
    links: Option<Links>,
    complained: Option<String>,
}

/// Whether pods are intercepted at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The pods' cgroup does not exist (yet, or again), or can't be attached to.
    Waiting,
    /// Attached.
    Attached,
}

impl Attachment {
    /// Nothing is attached before [`Self::start`]. `wanted` are the hostNetwork pods to intercept.
    pub fn new(
        programs: Programs,
        locator: Locator,
        pods: CurrentPods,
        host_pods: HashMap<MapData, u64, u8>,
        wanted: watch::Receiver<BTreeSet<PodUid>>,
    ) -> Self {
        let (listed, links, complained) = (BTreeSet::new(), None, None);
        Self {
            programs,
            locator,
            pods,
            host_pods,
            wanted,
            listed,
            links,
            complained,
        }
    }

    /// Attaches at once where the cgroup exists, so that start-up fails here and not later.
    ///
    /// # Errors
    /// What the kernel or the cgroup tree have against it. A cgroup that does not exist is none.
    pub fn start(&mut self) -> Result<State, AttachError> {
        match self.locator.locate()? {
            Some(pods) => self.attach(pods).map(|()| State::Attached),
            None => {
                self.locator.check_v1(Path::new("/sys/fs/cgroup"))?;
                info!("waiting for the pods' cgroup ({})", self.locator.describe());
                Ok(State::Waiting)
            }
        }
    }

    /// In this order: whose pods they are is known before the first connection can be redirected, and hostNetwork pods
    /// are listed before the programs ask for it.
    fn attach(&mut self, pods: PodsCgroup) -> Result<(), AttachError> {
        pods.check_lookup()?;
        let pods = Arc::new(pods);
        *self.pods.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&pods));
        self.list();
        self.links = Some(self.programs.attach(pods.dir())?);
        info!(cgroup = %pods.path().display(), "attached to the pods' cgroup");
        Ok(())
    }

    /// Runs until `stop` fires, then detaches what redirects and hands itself back; what files identities stays
    /// attached until it is dropped.
    pub async fn keep(mut self, state: watch::Sender<State>, mut stop: oneshot::Receiver<()>) -> Self {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = &mut stop => break,
                // Whoever computes the list ends with the agent; until then a closed channel is only slow.
                Ok(()) = self.wanted.changed() => self.list(),
                _ = look.tick() => {
                    self.look();
                    self.list();
                    let now = if self.links.is_some() { State::Attached } else { State::Waiting };
                    state.send_if_modified(|state| std::mem::replace(state, now) != now);
                }
            }
        }
        if let Some(links) = &mut self.links {
            links.stop_redirecting();
        }
        self
    }

    fn look(&mut self) {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner).clone();
        if self.links.is_some() {
            if pods.as_ref().is_some_and(|pods| pods.is_current()) {
                return;
            }
            warn!("the pods' cgroup was removed; waiting for it to be made again");
            self.links = None;
            *self.pods.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        let result = match self.locator.locate() {
            Ok(Some(pods)) => self.attach(pods),
            Ok(None) => Ok(()),
            Err(error) => Err(error.into()),
        };
        let complaint = result.err().map(|error| error.to_string());
        if complaint.is_some() && complaint != self.complained {
            error!(
                "pods are not intercepted: {}",
                complaint.as_deref().unwrap_or_default()
            );
        }
        self.complained = complaint;
    }

    /// Brings the kernel's list of hostNetwork pods in line with those that are wanted.
    fn list(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        if wanted.is_empty() && self.listed.is_empty() {
            return;
        }
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner).clone();
        let found: BTreeSet<u64> = match pods {
            Some(pods) => wanted
                .iter()
                .filter_map(|uid| pods.find_pod(uid))
                // Our own calls to the metadata service must never end at ourselves.
                .filter(|(path, id)| self.listed.contains(id) || !holds_this_process(path))
                .map(|(_, id)| id)
                .collect(),
            None => BTreeSet::new(),
        };
        for gone in self.listed.difference(&found) {
            // Gone from the map already is as good.
            let _ = self.host_pods.remove(gone);
        }
        let mut now = BTreeSet::new();
        for id in found {
            let inserted = if self.listed.contains(&id) {
                Ok(())
            } else {
                self.host_pods.insert(id, 0, 0)
            };
            match inserted {
                Ok(()) => {
                    now.insert(id);
                }
                Err(error) => warn!("cannot list a hostNetwork pod for interception: {error}"),
            }
        }
        self.listed = now;
    }
}

/// Why the programs could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Looking up callers.
    #[error("callers could not be identified: {0}")]
    Lookup(#[from] NotAPod),
    /// The kernel.
    #[error(transparent)]
    Programs(#[from] ProgramsError),
}

/// Whether this process runs in a cgroup or, as runtimes nest them, in one at most three levels below it.
/// `cgroup.procs` shows processes of other PID namespaces as 0, so a match can only be ourselves.
fn holds_this_process(cgroup: &Path) -> bool {
    fn search(dir: &Path, own: &str, levels: u8) -> bool {
        let processes = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let children = || {
            fs::read_dir(dir)
                .into_iter()
                .flatten()
                .filter_map(Result::ok)
                .map(|entry| entry.path())
        };
        processes.lines().any(|pid| pid == own)
            || (levels > 0 && children().any(|child| child.is_dir() && search(&child, own, levels - 1)))
    }
    search(cgroup, &std::process::id().to_string(), 3)
}
