//! Reports the agent's state in the log and to probes.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::cluster::Cluster;
use super::context::Context;
use super::pod_source::PodSource;
use super::tasks::Tasks;
use super::{Mode, Settings};
use crate::credentials::sts::Sts;
use crate::intercept::attachment::AttachmentState;
use crate::intercept::guard::{GuardLevel, GuardState};
use crate::intercept::placement::Placement;
use crate::introspection::AgentInfo;
use crate::roles::{BaseArn, RoleArn, WrittenRole};
use crate::runtime_dir::ServedMarker;
use crate::telemetry::health::{Condition, Health, Part};

/// Logs the settings of the command line in one line.
pub(super) fn log_settings(settings: &Settings) {
    let on = |is_on: bool| if is_on { "on" } else { "off" };
    let rules = &settings.rules;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.mode.label(),
        node = rules.sessions.node.as_deref().unwrap_or("(not named)"),
        namespace_policy = if rules.namespaces.required {
            "required"
        } else {
            "off"
        },
        default_role = rules.default_role.as_ref().map_or("none", WrittenRole::name),
        web_identity = on(rules.web_identity),
        intermediate_role = settings
            .sts
            .intermediate_role
            .as_ref()
            .map_or("none", RoleArn::as_str),
        "metaproxy starts"
    );
}

/// Builds the description of an agent that starts now, from its settings and the addresses of its listeners.
pub(super) fn agent_info(settings: &Settings, listeners: watch::Receiver<Vec<String>>) -> AgentInfo {
    AgentInfo {
        mode: settings.mode.label(),
        node: settings.rules.sessions.node.clone(),
        listeners,
        started: SystemTime::now(),
        intermediate_role: settings.sts.intermediate_role.as_ref().map(ToString::to_string),
    }
}

/// Logs the agent's environment in one line: what it has found and set up.
pub(super) fn log_environment(
    settings: &Settings,
    cluster: Option<&Cluster>,
    (sts, guard): (Option<&Sts>, Option<GuardLevel>),
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
        guard = guard.map_or("off", GuardLevel::label),
        admin = settings.admin.map_or("off".to_owned(), |admin| admin.to_string()),
        "set up"
    );
}

/// Starts the tasks that log readiness and keep the marker for guards. Returns the handle of the task that logs
/// readiness.
pub(super) fn spawn_readiness(
    context: &Context,
    listeners: watch::Receiver<Vec<String>>,
    mark: ServedMarker,
    tasks: &mut Tasks,
) -> AbortHandle {
    let health = context.health.clone();
    if context.mode == Mode::Observe {
        tasks.spawn("served-marker", clear_marker(mark));
        tasks.spawn("readiness-log", log_observing(health))
    } else {
        tasks.spawn("served-marker", set_marker(health.clone(), mark));
        tasks.spawn("readiness-log", log_readiness(health, listeners))
    }
}

/// Logs when the agent begins to serve pods, and why it no longer does.
async fn log_readiness(health: Health, listeners: watch::Receiver<Vec<String>>) {
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

/// Logs when the agent begins to observe pods, and when it no longer observes all of them.
async fn log_observing(health: Health) {
    loop {
        health.ready().await;
        info!("ready: observing; pods reach the node's metadata service as without metaproxy");
        health.not_ready().await;
        warn!("not ready: some pods are not observed");
    }
}

/// Sets the marker that shows guards that pods are served. The marker is set repeatedly, because the file may be
/// deleted.
async fn set_marker(health: Health, mark: ServedMarker) {
    const RETRY_INTERVAL: Duration = Duration::from_millis(500);
    let mut is_logged = false;
    loop {
        health.ready().await;
        match mark.set() {
            Ok(()) => is_logged = false,
            Err(error) if !is_logged => {
                warn!("guards on this node are not told that pods are served: {error}");
                is_logged = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Clears the marker, so that guards allow pods' connections. If another agent on the node still serves pods, it sets
/// the marker again.
async fn clear_marker(mark: ServedMarker) {
    const RETRY_INTERVAL: Duration = Duration::from_secs(1);
    loop {
        mark.clear();
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Reports to health whether pods are intercepted: the programs are attached, and the pods are below the cgroup to
/// which they are attached.
pub(super) async fn report_interception(
    mut states: watch::Receiver<AttachmentState>,
    mut placement: watch::Receiver<Arc<Placement>>,
    health: Health,
) {
    loop {
        let pods = placement.borrow_and_update().condition();
        let condition = match *states.borrow_and_update() {
            AttachmentState::Attached => pods,
            AttachmentState::Reattached { .. } if !pods.serves() => pods,
            AttachmentState::Reattached { times } => Condition::Degraded(format!(
                "another program has detached metaproxy's programs {times} times; they were attached again"
            )),
            AttachmentState::Waiting => Condition::Failing(
                "the pods' cgroup does not exist, or programs cannot be attached to it".to_owned(),
            ),
        };
        health.set(Part::Interception, condition);
        // The task that sends the placement ends only when the agent ends.
        let changed = tokio::select! {
            changed = states.changed() => changed,
            Ok(()) = placement.changed() => Ok(()),
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Reports to health whether the guard is closed.
pub(super) async fn report_guard(mut states: watch::Receiver<GuardState>, health: Health) {
    loop {
        // Without a guard, pods are still served. A missing cgroup is reported as a failure of the interception.
        let waiting = Condition::Degraded("not attached (yet)".to_owned());
        let state = *states.borrow_and_update();
        health.set(Part::Guard, state.condition(waiting));
        if states.changed().await.is_err() {
            std::future::pending().await
        }
    }
}
