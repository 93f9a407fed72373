//! The state that all parts of the agent share.

use std::sync::Arc;

use tokio::sync::watch;

use super::cluster::Cluster;
use super::tasks::Tasks;
use super::{Mode, Settings, StartError};
use crate::cgroups::CurrentPods;
use crate::imds::upstream::Upstream;
use crate::pods::Pods;
use crate::roles::Rules;
use crate::telemetry::health::Health;

/// The shared state of the agent, in every mode.
pub(super) struct Context {
    pub mode: Mode,
    pub pods: Pods,
    pub rules: watch::Sender<Arc<Rules>>,
    pub health: Health,
    /// The cluster, if pods come from its API server.
    pub cluster: Option<Cluster>,
    /// The node's metadata service.
    pub upstream: Upstream,
    /// The pods' cgroup while it exists.
    pub cgroup: CurrentPods,
}

impl Context {
    /// Opens the source of pods, and follows it.
    ///
    /// # Errors
    /// If the source cannot be opened.
    pub async fn open(settings: &Settings, tasks: &mut Tasks) -> Result<Self, StartError> {
        let source = settings.pods.open(&settings.rules, &settings.runtime_dir).await?;
        Ok(Self {
            mode: settings.mode,
            health: source.health(),
            cluster: source.cluster(),
            pods: source.follow(tasks).await,
            rules: watch::Sender::new(Arc::new(settings.rules.clone())),
            upstream: Upstream::new(settings.imds.clone()),
            cgroup: CurrentPods::default(),
        })
    }
}
