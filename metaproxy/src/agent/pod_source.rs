//! The source of the node's pods: the API server, or a directory of manifests.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::info;

use super::StartError;
use super::cluster::Cluster;
use super::tasks::Tasks;
use crate::apiserver::{ApiServer, KubeconfigSource};
use crate::pods::kubernetes::Watch;
use crate::pods::manifests::Manifests;
use crate::pods::{Inventory, Pods, Source as _};
use crate::roles::Rules;
use crate::telemetry::health::{Condition, Health, Part};

/// How long the start waits for the API server's first lists. These lists contain the hostNetwork pods and the ports
/// that are used on the node. The wait is short, because pods can reach the node's credentials until it is over.
const FIRST_LISTS_TIMEOUT: Duration = Duration::from_secs(2);

/// The source of the node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// A directory of manifests.
    Manifests {
        /// The directory.
        dir: PathBuf,
        /// The name of this node. Pods that are bound to another node are left out.
        node: Option<String>,
    },
    /// No source, because the mode needs no pods.
    None,
    /// The API server.
    ApiServer {
        /// How the API server is reached.
        kubeconfig: KubeconfigSource,
        /// The name of the node whose pods are served.
        node: String,
        /// The taint to remove from the node when pods are served.
        startup_taint: Option<String>,
    },
}

/// An open source of pods.
pub(super) struct OpenPodSource {
    source: Opened,
    health: Health,
}

enum Opened {
    None,
    Manifests(Manifests),
    ApiServer(Box<Watch>, Cluster),
}

impl PodSource {
    /// Opens the source, without waiting for an answer.
    ///
    /// # Errors
    /// If the directory cannot be read, or the kubeconfig cannot be used.
    pub(super) async fn open(&self, rules: &Rules, runtime_dir: &Path) -> Result<OpenPodSource, StartError> {
        match self {
            Self::Manifests { dir, node } => Ok(OpenPodSource {
                source: Opened::Manifests(Manifests::open(dir, node.clone())?),
                health: Health::starting([Part::Interception]),
            }),
            Self::None => Ok(OpenPodSource {
                source: Opened::None,
                health: Health::starting([Part::Interception]),
            }),
            Self::ApiServer {
                kubeconfig,
                node,
                startup_taint,
            } => {
                let api = ApiServer::open(kubeconfig).await?;
                let kept = rules.kept();
                let mut parts = Watch::parts(&kept);
                parts.push(Part::Interception);
                let health = Health::starting(parts);
                // While the API server does not answer, pods are served from the known state.
                health.set(Part::Permissions, Condition::Degraded("not known yet".to_owned()));
                let watch = Watch::open(api.clone(), node.clone(), kept, runtime_dir, health.clone());
                let cluster = Cluster {
                    api,
                    node: node.clone(),
                    startup_taint: startup_taint.clone(),
                };
                Ok(OpenPodSource {
                    source: Opened::ApiServer(Box::new(watch), cluster),
                    health,
                })
            }
        }
    }
}

impl OpenPodSource {
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    pub fn cluster(&self) -> Option<Cluster> {
        match &self.source {
            Opened::None | Opened::Manifests(_) => None,
            Opened::ApiServer(_, cluster) => Some(cluster.clone()),
        }
    }

    /// Starts the task that follows the pods. Waits up to `FIRST_LISTS_TIMEOUT` for the API server's first lists.
    pub async fn follow(self, tasks: &mut Tasks) -> Pods {
        let first = |inventory: Inventory| watch::channel(Arc::new(inventory));
        match self.source {
            Opened::None => {
                let (publish, pods) = first(Inventory::default());
                // The task never ends, so the channel stays open for receivers that wait for a change.
                tasks.spawn("pods", async move {
                    publish.closed().await;
                    std::future::pending().await
                });
                pods
            }
            Opened::Manifests(manifests) => {
                let (publish, pods) = first(manifests.inventory());
                tasks.spawn("pods", manifests.reporting_to(self.health).run(publish));
                pods
            }
            Opened::ApiServer(watch, _) => {
                let (publish, pods) = first(watch.inventory());
                tasks.spawn("pods", watch.run(publish));
                let lists = [Part::Pods, Part::Namespaces, Part::ServiceAccounts];
                let listed = self.health.part_serves(&lists);
                if tokio::time::timeout(FIRST_LISTS_TIMEOUT, listed).await.is_err() {
                    info!(
                        "the API server has not listed the pods yet; requests of pods are held until it has"
                    );
                }
                pods
            }
        }
    }
}
