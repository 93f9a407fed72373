//! Reports what `--mode enforce` would change, while pods reach the node's metadata service as they do without
//! metaproxy. No connection is redirected and there is no listener. The programs only record which cgroups connect.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfMap, MapData};
use tokio::sync::watch;
use tracing::info;

use super::context::Context;
use super::{Settings, StartError};
use crate::cgroups::CurrentPods;
use crate::credentials::network_env::NetworkEnv;
use crate::credentials::sts::Sts;
use crate::pods::{PodUid, Pods};
use crate::roles::{Decision, Rules};

/// The time between two readings of the cgroups that have connected.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// How long the connection count of an unknown pod is kept.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(60);

/// The time before the same message about the same pod is logged again.
const REPEAT_INTERVAL: Duration = Duration::from_secs(3600);

/// Sets up the STS client if the account of roles' names is found through STS. With the account, log messages show
/// the full ARN of a role that is given by name.
///
/// # Errors
/// If STS cannot be set up.
pub(super) async fn sts(settings: &Settings) -> Result<Option<Sts>, StartError> {
    if settings.rules.base.is_some() {
        return Ok(None);
    }
    Ok(Some(Sts::connect(&settings.sts, &NetworkEnv::read()).await?))
}

/// Logs for each pod that connects what `--mode enforce` would give it.
pub(super) struct Observer {
    observed: BpfMap<MapData, u64, u64>,
    current: CurrentPods,
    pods: Pods,
    rules: watch::Receiver<Arc<Rules>>,
    said: HashMap<PodUid, (String, Instant)>,
}

impl Observer {
    /// Makes an observer of the programs' map of cgroups that connect.
    pub fn new(observed: BpfMap<MapData, u64, u64>, context: &Context) -> Self {
        Self {
            observed,
            current: Arc::clone(&context.cgroup),
            pods: context.pods.clone(),
            rules: context.rules.subscribe(),
            said: HashMap::new(),
        }
    }

    /// Logs the pods that connect. Runs until the future is dropped.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(POLL_INTERVAL);
        let mut unsaid: HashMap<PodUid, (u64, Instant)> = HashMap::new();
        loop {
            look.tick().await;
            for (uid, count) in self.connected() {
                unsaid.entry(uid).or_insert((0, Instant::now())).0 += count;
            }
            unsaid.retain(|uid, (count, first)| !self.say(uid, *count) && first.elapsed() < UNKNOWN_TIMEOUT);
            let known = Arc::clone(&self.pods.borrow());
            self.said.retain(|uid, _| known.by_uid(uid).is_some());
        }
    }

    /// Returns the pods that have connected since the last reading, with their numbers of connections.
    fn connected(&mut self) -> Vec<(PodUid, u64)> {
        let entries: Vec<(u64, u64)> = self.observed.iter().filter_map(Result::ok).collect();
        for (cgroup, _) in &entries {
            // The removal fails if another reader has already removed the entry.
            let _ = self.observed.remove(cgroup);
        }
        let current = self
            .current
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let Some(current) = current.as_ref() else {
            return Vec::new();
        };
        let pod_of = |(cgroup, count)| Some((current.pod_of(cgroup).ok()?, count));
        entries.into_iter().filter_map(pod_of).collect()
    }

    /// Logs what a pod would get, unless the same message was logged within [`REPEAT_INTERVAL`]. Returns `false` if
    /// the decision has to wait, because the pod or its role is not known yet.
    fn say(&mut self, uid: &PodUid, connections: u64) -> bool {
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        let change = match rules.resolve(&inventory, uid) {
            Decision::Wait(_) => return false,
            Decision::Granted(grant) => format!("it would get {}", grant.reason),
            Decision::Refused { reason, .. } => format!("it would get no credentials: {reason}"),
            Decision::NoRole(reason) => format!("it would get no credentials: {reason}"),
        };
        let is_news = self
            .said
            .get(uid)
            .is_none_or(|(said, when)| *said != change || when.elapsed() >= REPEAT_INTERVAL);
        if is_news {
            let pod = match inventory.by_uid(uid) {
                Some(crate::pods::Known::Pod(pod)) => pod.to_string(),
                _ => uid.to_string(),
            };
            info!(
                pod,
                connections,
                "observed: the pod uses the node's metadata service; with --mode enforce {change}"
            );
            self.said.insert(uid.clone(), (change, Instant::now()));
        }
        true
    }
}
