//! Checks that the known pods are below the pods' cgroup, where their connections are intercepted.
//!
//! A program that is attached to a cgroup runs only for the processes below it. All programs are attached and yet no
//! pod is intercepted in two cases: `--cgroup` names another cgroup, or a container runtime does not use the
//! kubelet's cgroup (containerd with `SystemdCgroup = false` on a node whose kubelet uses systemd).
//!
//! A pod is *elsewhere* if no process runs in its cgroup below the pods' cgroup, and a process runs in a cgroup of
//! its name at another place. That is certain at once, because a kubelet never creates such a cgroup. A pod is
//! *missing* if it runs according to its status, but for ten seconds no process is found in a cgroup of its name.
//! That is not certain, because its status may be old, as after a reboot. A pod without a status, as in a manifest,
//! is never missing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::warn;

use crate::cgroups::CurrentPods;
use crate::cgroups::PodsCgroup;
use crate::pods::{Inventory, Known, Mirror, Pod, PodUid, Pods};
use crate::telemetry::health::Condition;

/// The interval at which pods are looked for. Each pod costs up to three `stat`s and one small file.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The minimum time between two checks, even if pods change all the time.
const MIN_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The time after which a pod that runs according to its status, but has no process, counts as missing.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of levels below a mount at which a pod's cgroup is looked for.
const MAX_DEPTH: u8 = 6;

/// The maximum number of pods that a message names.
const MAX_NAMED: usize = 3;

/// The place of a pod that is not below the pods' cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Misplaced {
    /// Its processes are in this cgroup.
    Elsewhere(PathBuf),
    /// It runs according to its status, but no process is found.
    Missing,
}

impl fmt::Display for Misplaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Elsewhere(path) => write!(f, "its processes are in {}", path.display()),
            Self::Missing => write!(f, "by its status it runs, and no process of it is found"),
        }
    }
}

/// The result of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// The pods' cgroup; empty if it did not exist.
    pub cgroup: PathBuf,
    /// The number of pods that were looked for.
    pub pods: usize,
    /// The pods that are not below it, by UID, with their names (`namespace/name`).
    pub misplaced: BTreeMap<PodUid, (String, Misplaced)>,
}

impl Placement {
    /// Returns the reason why a pod is certainly not intercepted; `None` if it is, or if that is uncertain.
    pub fn not_intercepted(&self, uid: &PodUid) -> Option<String> {
        match self.misplaced.get(uid) {
            Some((pod, place @ Misplaced::Elsewhere(_))) => Some(format!(
                "pod {pod} is not intercepted, and nothing but a firewall keeps it from the node's credentials: {place}, which is \
                 not below {} where the programs are attached; {ADVICE}",
                self.cgroup.display()
            )),
            Some((_, Misplaced::Missing)) | None => None,
        }
    }

    /// Returns the condition for health.
    pub fn condition(&self) -> Condition {
        let is_elsewhere = |place: &Misplaced| matches!(place, Misplaced::Elsewhere(_));
        if self.misplaced.is_empty() {
            Condition::Fine
        } else if self.misplaced.values().any(|(_, place)| is_elsewhere(place)) {
            Condition::Failing(self.sentence())
        } else {
            Condition::Degraded(self.sentence())
        }
    }

    fn sentence(&self) -> String {
        let mut named: Vec<String> = self
            .misplaced
            .values()
            .map(|(pod, place)| format!("{pod} ({place})"))
            .collect();
        let more = named.len().saturating_sub(MAX_NAMED);
        named.truncate(MAX_NAMED);
        if more > 0 {
            named.push(format!("{more} more"));
        }
        format!(
            "{} of {} pods of this node are not below {}, where they are intercepted: {}; {ADVICE}",
            self.misplaced.len(),
            self.pods,
            self.cgroup.display(),
            named.join(", ")
        )
    }
}

const ADVICE: &str =
    "give --cgroup the cgroup of all pods, and kubelet and container runtime the same cgroup driver";

/// Looks for the pods of the inventory in the cgroup tree.
#[derive(Debug)]
pub struct PodFinder {
    pods: Pods,
    current: CurrentPods,
    roots: Vec<PathBuf>,
    missing: HashMap<PodUid, Instant>,
    reported: BTreeSet<PodUid>,
}

impl PodFinder {
    /// Makes a finder for these pods below the current pods' cgroup. `roots` are the cgroup2 mounts in which it
    /// searches for pods that are not below it.
    pub fn new(pods: Pods, current: CurrentPods, roots: Vec<PathBuf>) -> Self {
        Self {
            pods,
            current,
            roots,
            missing: HashMap::new(),
            reported: BTreeSet::new(),
        }
    }

    /// Checks the pods regularly and after changes, until the task is ended.
    pub async fn run(mut self, publish: watch::Sender<Arc<Placement>>) {
        let mut look = tokio::time::interval(POLL_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                // If the source of pods has ended, another task ends the agent.
                Ok(()) = self.pods.changed() => {}
            }
            // If a pod is not below the pods' cgroup, directories are read, which may block.
            let now = tokio::task::block_in_place(|| self.check(Instant::now()));
            self.report(&now);
            publish.send_if_modified(|last| {
                let is_news = **last != now;
                *last = Arc::new(now);
                is_news
            });
            tokio::time::sleep(MIN_CHECK_INTERVAL).await;
        }
    }

    fn check(&mut self, now: Instant) -> Placement {
        let current = self
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        // Without the pods' cgroup no pod is intercepted, which the attachment reports.
        let Some(cgroup) = current else {
            self.missing.clear();
            return Placement::default();
        };
        let inventory = Arc::clone(&self.pods.borrow_and_update());
        let mut suspects = Vec::new();
        let mut pods = 0;
        for pod in examined(&inventory) {
            pods += 1;
            if is_below(&cgroup, pod.cgroup_uid()) {
                self.missing.remove(&pod.uid);
            } else {
                suspects.push(pod);
            }
        }
        let elsewhere = if suspects.is_empty() {
            HashMap::new()
        } else {
            find_elsewhere(&self.roots, &cgroup, &suspects)
        };
        let mut misplaced = BTreeMap::new();
        for pod in &suspects {
            let place = match elsewhere.get(pod.cgroup_uid()) {
                // The pod may have started meanwhile, and was found through another mount of the same tree.
                Some(_) if is_below(&cgroup, pod.cgroup_uid()) => continue,
                Some(path) => Misplaced::Elsewhere(path.clone()),
                None if !pod.running => continue,
                None => {
                    let since = *self.missing.entry(pod.uid.clone()).or_insert(now);
                    if now.duration_since(since) < START_TIMEOUT {
                        continue;
                    }
                    Misplaced::Missing
                }
            };
            misplaced.insert(pod.uid.clone(), (pod.to_string(), place));
        }
        let is_suspect = |uid: &PodUid| suspects.iter().any(|pod| pod.uid == *uid && pod.running);
        self.missing.retain(|uid, _| is_suspect(uid));
        Placement {
            cgroup: cgroup.path().to_owned(),
            pods,
            misplaced,
        }
    }

    /// Logs a misplaced pod once, and again only if it was in place in between.
    fn report(&mut self, now: &Placement) {
        self.reported.retain(|uid| now.misplaced.contains_key(uid));
        for (uid, (pod, place)) in &now.misplaced {
            if self.reported.insert(uid.clone()) {
                warn!(
                    pod,
                    "the pod is not below {}, where pods are intercepted: {place}; {ADVICE}",
                    now.cgroup.display()
                );
            }
        }
    }
}

/// Returns the pods that have not finished and whose cgroups' names are known, each once.
fn examined(inventory: &Inventory) -> impl Iterator<Item = Arc<Pod>> {
    inventory.pods().filter_map(|(uid, known)| match known {
        // A static pod is also indexed under its hash, and must not be returned twice. The cgroup of a pod that only
        // claims a hash may have either name.
        Known::Pod(pod) if pod.uid == *uid && !pod.finished && pod.mirror != Mirror::Claimed => {
            Some(Arc::clone(pod))
        }
        Known::Pod(_) | Known::Ambiguous(_) => None,
    })
}

fn is_below(cgroup: &PodsCgroup, uid: &PodUid) -> bool {
    cgroup.find_pod(uid).is_some_and(|(path, _)| is_populated(&path))
}

/// Reports whether a process runs in a cgroup or below it (`cgroup.events`, Documentation/admin-guide/cgroup-v2.rst).
fn is_populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Finds cgroups that have the names of these pods and processes in them, and are not below the pods' cgroup.
fn find_elsewhere(roots: &[PathBuf], cgroup: &PodsCgroup, pods: &[Arc<Pod>]) -> HashMap<PodUid, PathBuf> {
    let wanted: HashMap<String, &PodUid> = pods
        .iter()
        .flat_map(|pod| {
            let uid = pod.cgroup_uid();
            [(uid.to_string(), uid), (uid.as_str().replace('-', "_"), uid)]
        })
        .collect();
    let mut found = HashMap::new();
    for root in roots {
        search(root, MAX_DEPTH, cgroup, &wanted, &mut found);
    }
    found
}

fn search(
    dir: &Path,
    depth: u8,
    cgroup: &PodsCgroup,
    wanted: &HashMap<String, &PodUid>,
    found: &mut HashMap<PodUid, PathBuf>,
) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        match uid_in(&entry.file_name().to_string_lossy()) {
            // Cgroups below a pod's cgroup are not searched, because a container may name its own cgroups after
            // another pod.
            Some(uid) => {
                if let Some(pod) = wanted.get(uid).filter(|_| is_populated(&path)) {
                    let is_in_place = cgroup.find_pod(pod).is_some_and(|(place, _)| place == path);
                    if !is_in_place {
                        found.insert((*pod).clone(), path);
                    }
                }
            }
            None => search(&path, depth, cgroup, wanted, found),
        }
    }
}

/// Returns the UID in a cgroup's name. The name is `pod<uid>`, `kubepods-burstable-pod<uid_>.slice`, or
/// `kubepods-burstable-pod<uid_>.slice:cri-containerd:<id>`. runc's cgroupfs driver creates the last form from a path
/// for systemd.
fn uid_in(name: &str) -> Option<&str> {
    let name = name.split(['.', ':']).next().unwrap_or_default();
    let at = match name.strip_prefix("pod") {
        Some(uid) => Some(uid),
        None => name.split_once("-pod").map(|(_, uid)| uid),
    };
    at.filter(|uid| !uid.is_empty())
}

#[cfg(test)]
mod tests;
