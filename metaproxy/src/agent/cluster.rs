//! Where pods come from, and what else the agent does in a cluster.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::info;

use super::StartError;
use crate::apiserver::events;
use crate::apiserver::permissions::{self, Features};
use crate::apiserver::token_trial::AudienceLimit;
use crate::apiserver::{ApiServer, KubeconfigSource, taint};
use crate::credentials::token_subjects;
use crate::pods::kubernetes::Watch;
use crate::pods::manifests::Manifests;
use crate::pods::{Inventory, Known, Pod, Pods, Source as _};
use crate::roles::Rules;
use crate::telemetry::health::{Condition, Health, Part};
use crate::telemetry::pod_event::{self, PodEventSender};

/// How long the start waits for the API server's first lists: hostNetwork pods and ports of the node are known from the
/// beginning then. Pods are kept from the node's credentials all the sooner without it.
const FIRST_LISTS: Duration = Duration::from_secs(2);

/// Where pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// A directory.
    Manifests {
        /// Which.
        dir: PathBuf,
        /// Pods that are bound to another node are left out.
        node: Option<String>,
    },
    /// None is needed.
    Nobody,
    /// The API server.
    ApiServer {
        /// Where it is.
        kubeconfig: KubeconfigSource,
        /// Whose pods are served.
        node: String,
        /// A taint of the node to remove when they are.
        startup_taint: Option<String>,
    },
}

/// An open source of pods.
pub(super) struct PodsHere {
    source: Opened,
    health: Health,
}

enum Opened {
    Nobody,
    Manifests(Manifests),
    ApiServer(Box<Watch>, Cluster),
}

/// The cluster that this node is part of.
#[derive(Clone)]
pub(super) struct Cluster {
    pub api: ApiServer,
    node: String,
    startup_taint: Option<String>,
}

impl PodsHere {
    pub async fn open(source: &PodSource, rules: &Rules, runtime_dir: &Path) -> Result<Self, StartError> {
        match source {
            PodSource::Manifests { dir, node } => Ok(Self {
                source: Opened::Manifests(Manifests::open(dir, node.clone())?),
                health: Health::starting([Part::Interception]),
            }),
            PodSource::Nobody => Ok(Self {
                source: Opened::Nobody,
                health: Health::starting([Part::Interception]),
            }),
            PodSource::ApiServer {
                kubeconfig,
                node,
                startup_taint,
            } => {
                let api = ApiServer::open(kubeconfig).await?;
                let kept = rules.kept();
                let mut parts = Watch::parts(&kept);
                parts.push(Part::Interception);
                let health = Health::starting(parts);
                // An API server that does not answer keeps nobody from being served with what is known.
                health.set(Part::Permissions, Condition::Degraded("not known yet".to_owned()));
                let watch = Watch::open(api.clone(), node.clone(), kept, runtime_dir, health.clone());
                let cluster = Cluster {
                    api,
                    node: node.clone(),
                    startup_taint: startup_taint.clone(),
                };
                Ok(Self {
                    source: Opened::ApiServer(Box::new(watch), cluster),
                    health,
                })
            }
        }
    }

    pub fn health(&self) -> Health {
        self.health.clone()
    }

    pub fn cluster(&self) -> Option<Cluster> {
        match &self.source {
            Opened::Nobody | Opened::Manifests(_) => None,
            Opened::ApiServer(_, cluster) => Some(cluster.clone()),
        }
    }

    /// Follows the pods from now on; what is known of them is known a moment later.
    pub async fn follow(self, tasks: &mut JoinSet<()>) -> Pods {
        let first = |inventory: Inventory| watch::channel(Arc::new(inventory));
        match self.source {
            Opened::Nobody => {
                let (publish, pods) = first(Inventory::default());
                // Whoever waits for a change waits, and is not told of an end.
                tasks.spawn(async move {
                    publish.closed().await;
                    std::future::pending().await
                });
                pods
            }
            Opened::Manifests(manifests) => {
                let (publish, pods) = first(manifests.inventory());
                tasks.spawn(manifests.reporting_to(self.health).run(publish));
                pods
            }
            Opened::ApiServer(watch, _) => {
                let (publish, pods) = first(watch.inventory());
                tasks.spawn(watch.run(publish));
                let lists = [Part::Pods, Part::Namespaces, Part::ServiceAccounts];
                let listed = self.health.part_serves(&lists);
                if tokio::time::timeout(FIRST_LISTS, listed).await.is_err() {
                    info!("the API server has not told the pods yet; requests of pods are held until it has");
                }
                pods
            }
        }
    }
}

impl Cluster {
    /// Publishes events on pods, and returns what takes them.
    pub fn tell_owners(&self, tasks: &mut JoinSet<()>, pods: Pods) -> PodEventSender {
        let (sender, receiver) = pod_event::channel();
        let find = move |uid: &str| match pods.borrow().by_uid(&uid.parse().ok()?)? {
            Known::Pod(pod) => Some(reference(pod)),
            Known::Ambiguous(_) => None,
        };
        tasks.spawn(events::publish(
            self.api.clone(),
            self.node.clone(),
            receiver,
            find,
        ));
        sender
    }

    /// Looks after permissions, the limit of tokens if one is required, and the taint.
    pub fn attend(
        &self,
        tasks: &mut JoinSet<()>,
        rules: &Rules,
        limit: Option<AudienceLimit>,
        pods: Pods,
        health: &Health,
    ) {
        let features = Features {
            namespaces: !rules.kept().namespaces.is_empty(),
            service_accounts: rules.web_identity,
            startup_taint: self.startup_taint.is_some(),
        };
        let subjects = move || token_subjects::of_node(&pods.borrow());
        let permissions = permissions::watch(self.api.clone(), features, limit, subjects, health.clone());
        tasks.spawn(permissions);
        if let Some(taint) = &self.startup_taint {
            let (api, node) = (self.api.clone(), self.node.clone());
            health.set(
                Part::StartupTaint,
                Condition::Degraded(format!("{taint} is removed when pods are served")),
            );
            tasks.spawn(taint::remove(api, node, taint.clone(), health.clone()));
        }
    }
}

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}
