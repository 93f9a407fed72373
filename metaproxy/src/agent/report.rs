//! What the agent says of itself: in the log, to probes, and in metrics.

use std::sync::Arc;
use std::time::Duration;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;
use tokio::sync::watch;
use tracing::{info, warn};

use super::cluster::{Cluster, PodSource};
use super::{Mode, Settings};
use crate::admin;
use crate::credentials::sts::Sts;
use crate::credentials::{Issuer, SessionCounts, Sessions};
use crate::imds::server::{Counts, Server};
use crate::intercept::attachment::State;
use crate::intercept::guard::{Guard, GuardCounters, GuardState};
use crate::intercept::placement::Placement;
use crate::intercept::programs::Counters;
use crate::intercept::refusals::RefusalCount;
use crate::pods::Pods;
use crate::roles::BaseArn;
use crate::runtime_dir::ServedMarker;
use crate::telemetry::health::{Condition, Health, Part};

/// What the agent works with, in one line: what it was told stands in the line before, and this is what came of it.
pub(super) fn tell_surroundings(
    settings: &Settings,
    cluster: Option<&Cluster>,
    sts: Option<&Sts>,
    guard: Option<&Guard>,
) {
    let pods_from = match (&settings.pods, cluster) {
        (PodSource::Manifests { dir, .. }, _) => dir.display().to_string(),
        (_, Some(cluster)) => cluster.api.url().to_owned(),
        _ => "nowhere".to_owned(),
    };
    let asked = sts.filter(|_| settings.mode == Mode::Enforce);
    info!(
        pods_from,
        base_role_arn = settings
            .rules
            .base
            .as_ref()
            .map_or_else(|| "to be found out".to_owned(), BaseArn::prefix),
        region = asked.map_or("not asked", Sts::region),
        sts = asked.map_or("not asked", Sts::endpoint),
        session_duration = %humantime::format_duration(settings.sts.duration),
        imds = %settings.imds,
        guard = guard.map_or("off", |guard| guard.level().label()),
        admin = settings.admin.map_or("off".to_owned(), |admin| admin.to_string()),
        "set up"
    );
}

/// Says `ready` whenever pods begin to be served, and why they are not any more.
pub(super) async fn tell(health: Health, listeners: watch::Receiver<Vec<String>>) {
    loop {
        health.ready().await;
        let listen = listeners.borrow().join(",");
        info!(%listen, "ready");
        health.not_ready().await;
        let failing: Vec<String> = health
            .parts()
            .into_iter()
            .filter_map(|(part, condition)| match condition {
                Condition::Failing(why) => Some(format!("{}: {why}", part.label())),
                _ => None,
            })
            .collect();
        warn!("not ready: {}", failing.join("; "));
    }
}

/// Tells guards, by the mark, that pods are served; again where it gets lost, or could not be written.
pub(super) async fn tell_guards(health: Health, mark: ServedMarker) {
    const AGAIN: Duration = Duration::from_millis(500);
    let mut complained = false;
    loop {
        health.ready().await;
        match mark.set() {
            Ok(()) => complained = false,
            Err(error) if !complained => {
                warn!("guards on this node are not told that pods are served: {error}");
                complained = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Whether pods are intercepted: whether the programs are attached, and the pods where they are attached.
pub(super) async fn report(
    mut states: watch::Receiver<State>,
    mut placement: watch::Receiver<Arc<Placement>>,
    health: Health,
) {
    loop {
        // Who looks for the pods ends with the agent.
        let changed = tokio::select! {
            changed = states.changed() => changed,
            Ok(()) = placement.changed() => Ok(()),
        };
        if changed.is_err() {
            return;
        }
        let pods = placement.borrow_and_update().condition();
        let condition = match *states.borrow_and_update() {
            State::Attached => pods,
            State::Mended { .. } if !pods.serves() => pods,
            State::Mended { times } => Condition::Degraded(format!(
                "somebody else has detached our programs {times} times; they were attached again"
            )),
            State::Waiting => {
                Condition::Failing("the pods' cgroup is not there, or cannot be attached to".to_owned())
            }
        };
        health.set(Part::Interception, condition);
    }
}

/// How the guard is doing.
pub(super) async fn report_guard(mut states: watch::Receiver<GuardState>, health: Health) {
    loop {
        // Where the pods' cgroup is missing, that is said elsewhere; and pods are served without a guard.
        let waiting = Condition::Degraded("not attached (yet)".to_owned());
        let state = *states.borrow_and_update();
        health.set(Part::Guard, state.condition(waiting));
        if states.changed().await.is_err() {
            std::future::pending().await
        }
    }
}

/// What the metrics are made of.
pub(super) struct Figures<I> {
    pub server: Arc<Server<I>>,
    pub counters: Arc<Counters>,
    pub guard: Option<GuardCounters>,
    pub pods: Pods,
    pub sessions: Sessions<I>,
}

impl<I: Issuer> admin::Sources for Figures<I> {
    fn connections(&self) -> Counts {
        self.server.counts()
    }

    fn refusals(&self) -> Vec<RefusalCount> {
        self.server.refusals().counts()
    }

    fn guard(&self, counter: GuardCounter) -> u64 {
        self.guard.as_ref().map_or(0, |guard| guard.total(counter))
    }

    fn kernel(&self, counter: Counter) -> u64 {
        let checks = self.server.checks().counted(counter);
        self.counters.total(counter).saturating_sub(checks)
    }

    fn pods(&self) -> usize {
        self.pods.borrow().len()
    }

    fn sessions(&self) -> SessionCounts {
        self.sessions.counts()
    }

    fn register(&self, registry: &mut Registry) {
        self.server.measured().register(registry);
        self.server.node_requests().register_node_requests(registry);
        self.sessions.calls().register(registry);
        self.sessions.turns().register_sessions(registry);
    }
}

/// What the metrics are made of where pods are only observed.
pub(super) struct Observed {
    pub counters: Arc<Counters>,
    pub pods: Pods,
}

impl admin::Sources for Observed {
    fn connections(&self) -> Counts {
        Counts::default()
    }

    fn refusals(&self) -> Vec<RefusalCount> {
        Vec::new()
    }

    fn guard(&self, _counter: GuardCounter) -> u64 {
        0
    }

    fn kernel(&self, counter: Counter) -> u64 {
        self.counters.total(counter)
    }

    fn pods(&self) -> usize {
        self.pods.borrow().len()
    }

    fn sessions(&self) -> SessionCounts {
        SessionCounts::default()
    }

    fn register(&self, _registry: &mut Registry) {}
}
