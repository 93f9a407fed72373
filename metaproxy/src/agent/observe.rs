//! `--mode observe`: pods reach the node's metadata service as without metaproxy, and what enforce would change is
//! reported. Nothing is redirected and nobody listens; the programs only note which cgroups connect.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aya::maps::{HashMap as BpfMap, MapData};
use metaproxy_common::layout::Config;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::cluster::PodsHere;
use super::consequences::consequences;
use super::desk::{Answers, Identity};
use super::report::{self, report};
use super::{Settings, StartError, discovery, own_roles};
use crate::admin::{Admin, AdminSocket, Owner, Sources};
use crate::cgroups::Locator;
use crate::credentials::StsIssuer;
use crate::credentials::network_env::NetworkEnv;
use crate::credentials::sts::Sts;
use crate::imds::upstream::Upstream;
use crate::intercept::attachment::{Attachment, State};
use crate::intercept::caller::CurrentPods;
use crate::intercept::listed::{Listed, Lists};
use crate::intercept::placement::PodFinder;
use crate::intercept::programs::Programs;
use crate::pods::{PodUid, Pods};
use crate::roles::{Decision, Rules};
use crate::runtime_dir::ServedMarker;

/// How often it is looked who connected.
const LOOK: Duration = Duration::from_secs(1);

/// A pod that is not known after so long is not waited for.
const UNKNOWN: Duration = Duration::from_secs(60);

/// The same is said about the same pod only so often.
const AGAIN: Duration = Duration::from_secs(3600);

/// Observes until `stop`.
pub(super) async fn run(
    settings: Settings,
    node_netns: u64,
    mark: ServedMarker,
    stop: impl Future<Output = ()>,
) -> Result<(), StartError> {
    let locator = Locator::new(settings.cgroup_root.as_deref(), settings.cgroup.as_deref())?;
    let roots = locator.roots().to_vec();
    let (socket, socket_listener) = AdminSocket::open(&settings.runtime_dir, Owner::Agent)?;
    let mut tasks = JoinSet::new();
    let source = PodsHere::open(&settings.pods, &settings.rules, &settings.runtime_dir).await?;
    let (health, cluster) = (source.health(), source.cluster());
    let pods = source.follow(&mut tasks).await;
    report::tell_surroundings(&settings, cluster.as_ref(), None, None);
    let (programs, maps) = Programs::load(&Config::observing(node_netns))?;
    let current = CurrentPods::default();
    let identity = Identity::of(&settings, watch::channel(Vec::new()).1);
    let rules = Arc::new(settings.rules);
    let (wanted, listed) = watch::channel(consequences(&pods.borrow(), &rules, &BTreeSet::new()).listed);
    let mut attachment = Attachment::new(
        programs,
        locator,
        None,
        Arc::clone(&current),
        maps.pods,
        Lists::new(maps.host_pods, maps.pod_families),
        listed,
    );
    let state = attachment.start()?;
    let (publish_placement, placement) = watch::channel(Arc::default());
    let finder = PodFinder::new(pods.clone(), attachment.pods(), roots);

    let (publish_rules, rules) = watch::channel(rules);
    let figures = report::Observed {
        counters: Arc::new(maps.counters),
        pods: pods.clone(),
    };
    let figures: Arc<dyn Sources> = Arc::new(figures);
    let desk = Answers::<StsIssuer> {
        identity,
        pods: pods.clone(),
        rules: rules.clone(),
        health: health.clone(),
        current: Arc::clone(&current),
        placement: placement.clone(),
        figures: Arc::clone(&figures),
        serving: None,
    };
    let admin = Admin::new(health.clone(), figures, Arc::new(desk));
    tasks.spawn(admin.clone().serve_socket(socket_listener));
    if let Some(address) = settings.admin {
        tasks.spawn(admin.serve(address));
    }
    if let Some(cluster) = &cluster {
        // It asks for no tokens.
        cluster.attend(&mut tasks, &rules.borrow(), None, pods.clone(), &health);
    }
    let upstream = Upstream::new(settings.imds);
    let sts = if rules.borrow().base.is_none() {
        // Names of roles are shown as what they would be.
        let sts = Sts::connect(&settings.sts, &NetworkEnv::read()).await?;
        let names = discovery::base_arn(upstream.clone(), sts.clone(), publish_rules.clone());
        tasks.spawn(names);
        Some(sts)
    } else {
        None
    };
    tasks.spawn(own_roles::discover(upstream, sts, publish_rules.clone()));
    tasks.spawn(list_host_pods(pods.clone(), rules.clone(), wanted));
    let observer = Observer {
        observed: maps.observed,
        current,
        pods,
        rules,
        said: HashMap::new(),
    };
    tasks.spawn(observer.run());
    let (states, mut changes) = watch::channel(State::Waiting);
    let (stop_keeping, stopped) = oneshot::channel();
    let mut keeping = tokio::spawn(attachment.keep(states.clone(), stopped));
    states.send_replace(state);
    changes.mark_changed();
    tasks.spawn(finder.run(publish_placement));
    tasks.spawn(report(changes, placement, health.clone()));
    tasks.spawn(say_ready(health));
    tasks.spawn(open_guards(mark));
    tokio::select! {
        () = stop => {}
        _ = &mut keeping => return Err(StartError::TaskEnded("the one that keeps the programs attached")),
        _ = tasks.join_next() => return Err(StartError::TaskEnded("one that follows the pods")),
    }
    let _ = stop_keeping.send(());
    drop(keeping.await);
    drop((socket, publish_rules));
    info!("stopped");
    Ok(())
}

async fn say_ready(health: crate::telemetry::health::Health) {
    loop {
        health.ready().await;
        info!("ready: observing; pods reach the node's metadata service as without metaproxy");
        health.not_ready().await;
        warn!("not ready: some pods are not observed");
    }
}

/// Guards let pods pass; an agent that still serves them beside this one may say otherwise, as long as it is there.
async fn open_guards(mark: ServedMarker) {
    loop {
        mark.clear();
        tokio::time::sleep(LOOK).await;
    }
}

/// hostNetwork pods that enforce would intercept are observed too.
async fn list_host_pods(
    mut pods: Pods,
    mut rules: watch::Receiver<Arc<Rules>>,
    wanted: watch::Sender<Listed>,
) {
    loop {
        let inventory = Arc::clone(&pods.borrow_and_update());
        let rules_now = Arc::clone(&rules.borrow_and_update());
        let listed = wanted.borrow().in_node_netns.clone();
        let now = consequences(&inventory, &rules_now, &listed).listed;
        wanted.send_if_modified(|wanted| std::mem::replace(wanted, now.clone()) != now);
        let changed = tokio::select! {
            changed = pods.changed() => changed,
            changed = rules.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Says of each pod that connects what enforce would give it.
struct Observer {
    observed: BpfMap<MapData, u64, u64>,
    current: CurrentPods,
    pods: Pods,
    rules: watch::Receiver<Arc<Rules>>,
    said: HashMap<PodUid, (String, Instant)>,
}

impl Observer {
    async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK);
        let mut unsaid: HashMap<PodUid, (u64, Instant)> = HashMap::new();
        loop {
            look.tick().await;
            for (uid, count) in self.connected() {
                unsaid.entry(uid).or_insert((0, Instant::now())).0 += count;
            }
            unsaid.retain(|uid, (count, first)| !self.say(uid, *count) && first.elapsed() < UNKNOWN);
            let known = Arc::clone(&self.pods.borrow());
            self.said.retain(|uid, _| known.by_uid(uid).is_some());
        }
    }

    /// Who connected since the last look.
    fn connected(&mut self) -> Vec<(PodUid, u64)> {
        let entries: Vec<(u64, u64)> = self.observed.iter().filter_map(Result::ok).collect();
        for (cgroup, _) in &entries {
            // Gone already is as good.
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

    /// Whether there was something to say: a pod that is not known yet may be in a moment.
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
            .is_none_or(|(said, when)| *said != change || when.elapsed() >= AGAIN);
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
