//! Watches the pods of this node at the API server, and the metadata of namespaces and service accounts.
//!
//! The API server is not polled. A watch that breaks continues from the last version. If the API server does not have
//! that version any more (410), the watch starts again with a list.
//!
//! The objects stay in force while the API server cannot be reached. They are also kept in the runtime directory, so
//! that an agent that starts meanwhile knows them.

mod change;
mod snapshot;
mod store;
mod stream;
mod watch_health;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{Stream, StreamExt as _, select_all};
use k8s_openapi::api::core::v1;
use kube::Api;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use self::change::{Change, is_answer, keyed_account, keyed_namespace, keyed_pod, usable};
use self::snapshot::{Snapshot, SnapshotFile};
use self::store::Store;
use self::stream::events;
use self::watch_health::{WatchHealth, WatchedKind};
use super::annotations::retain_relevant;
use super::api::PodObject;
use super::{Inventory, Namespace, Pod, PodUid, ServiceAccount, Source};
use crate::apiserver::{ApiServer, REQUEST_TIMEOUT, with_timeout};
use crate::memory;
use crate::telemetry::health::{Condition, Health, Part};

/// The interval at which watches that have failed are checked for recovery.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The time between a list and the release of unused memory. A list causes other work that needs memory (sessions,
/// events).
const MEMORY_RELEASE_DELAY: Duration = Duration::from_secs(3);

/// The maximum number of changes that are applied before an inventory is published, if they arrive together.
const MAX_BATCH: usize = 1024;

/// The keys of annotations that are kept. All others are dropped before an object is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeptAnnotations {
    /// The keys of pods.
    pub pods: Vec<String>,
    /// The keys of namespaces. If there are none, namespaces are not watched.
    pub namespaces: Vec<String>,
    /// The keys of service accounts. If there are none, service accounts are not watched.
    pub service_accounts: Vec<String>,
}

/// The watches of pods, namespaces and service accounts.
#[derive(Debug)]
pub struct Watch {
    api: ApiServer,
    node: String,
    kept: KeptAnnotations,
    known: Stores,
    watch_health: WatchHealth,
    snapshot_file: SnapshotFile,
    health: Health,
}

/// The stores of the watches.
#[derive(Debug, Default)]
struct Stores {
    pods: Store<PodUid, Pod>,
    namespaces: Store<String, Namespace>,
    service_accounts: Store<(String, String), ServiceAccount>,
}

/// Lists at most 100 pods of a node, for commands, which do not watch.
///
/// # Errors
/// If the API server does not answer with a list.
pub async fn pods_of_node(api: &ApiServer, node: &str) -> Result<Vec<Pod>, String> {
    const MAX_PODS: u32 = 100;
    let params = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .limit(MAX_PODS);
    let pods = Api::<PodObject>::all(api.client());
    let found = with_timeout(REQUEST_TIMEOUT, pods.list(&params)).await?;
    let pods = found.items.into_iter().map(Pod::from_api);
    Ok(pods.filter_map(Result::ok).collect())
}

impl Watch {
    /// Returns the parts of the agent's health that the watches report.
    pub fn parts(kept: &KeptAnnotations) -> Vec<Part> {
        WatchedKind::ALL
            .into_iter()
            .filter(|kind| kept.watches(*kind))
            .map(WatchedKind::part)
            .collect()
    }

    /// Prepares the watches. Until the API server has answered, the snapshot of the last run is used, if the runtime
    /// directory has one of this node.
    pub fn open(
        api: ApiServer,
        node: String,
        kept: KeptAnnotations,
        runtime_dir: &Path,
        health: Health,
    ) -> Self {
        let snapshot_file = SnapshotFile::new(runtime_dir, node.clone(), kept.clone());
        let mut known = Stores::default();
        if let Some(Snapshot {
            pods,
            namespaces,
            service_accounts,
            ..
        }) = snapshot_file.load()
        {
            info!(
                pods = pods.len(),
                "the pods of the last run are served until the API server lists them"
            );
            known.pods = Store::from_last_run(pods.into_iter().map(keyed_pod));
            if let Some(namespaces) = namespaces {
                known.namespaces = Store::from_last_run(namespaces.into_iter().map(keyed_namespace));
            }
            if let Some(accounts) = service_accounts {
                known.service_accounts = Store::from_last_run(accounts.into_iter().map(keyed_account));
            }
        }
        let watch = Self {
            api,
            node,
            kept,
            known,
            watch_health: WatchHealth::default(),
            snapshot_file,
            health,
        };
        watch.report();
        watch
    }

    /// Returns the inventory of the objects that are known so far.
    pub fn inventory(&self) -> Inventory {
        Inventory::new(
            self.known.pods.all(),
            self.known.namespaces.all(),
            self.known.service_accounts.all(),
        )
    }

    fn changes(&self) -> impl Stream<Item = Change> + Send + use<> {
        let client = self.api.client();
        let mine = format!("spec.nodeName={}", self.node);
        let pods = events(Api::<PodObject>::all(client.clone()), config().fields(&mine));
        let keys = self.kept.pods.clone();
        let pods = change::changes(pods, WatchedKind::Pods, Change::Pod, move |pod| {
            Pod::from_api(pod).map(|pod| Pod {
                annotations: retain_relevant(pod.annotations, &keys),
                ..pod
            })
        });
        let mut streams = vec![pods];
        if self.kept.watches(WatchedKind::Namespaces) {
            let keys = self.kept.namespaces.clone();
            let api = Api::<PartialObjectMeta<v1::Namespace>>::all(client.clone());
            let namespaces = events(api, config());
            streams.push(change::changes(
                namespaces,
                WatchedKind::Namespaces,
                Change::Namespace,
                move |object| {
                    Namespace::from_api(object.metadata).map(|namespace| Namespace {
                        annotations: retain_relevant(namespace.annotations, &keys),
                        ..namespace
                    })
                },
            ));
        }
        if self.kept.watches(WatchedKind::ServiceAccounts) {
            let keys = self.kept.service_accounts.clone();
            let api = Api::<PartialObjectMeta<v1::ServiceAccount>>::all(client);
            let accounts = events(api, config());
            streams.push(change::changes(
                accounts,
                WatchedKind::ServiceAccounts,
                Change::ServiceAccount,
                move |object| {
                    ServiceAccount::from_api(object.metadata).map(|account| ServiceAccount {
                        annotations: retain_relevant(account.annotations, &keys),
                        ..account
                    })
                },
            ));
        }
        select_all(streams)
    }

    /// Applies a change, and reports whether an object differs now.
    fn apply(&mut self, change: Change) -> bool {
        let (kind, is_answer, changed) = match change {
            Change::Pod(event) => (
                WatchedKind::Pods,
                is_answer(&event),
                self.known.pods.apply(usable(event), keyed_pod),
            ),
            Change::Namespace(event) => {
                let is_answer = is_answer(&event);
                (
                    WatchedKind::Namespaces,
                    is_answer,
                    self.known.namespaces.apply(usable(event), keyed_namespace),
                )
            }
            Change::ServiceAccount(event) => {
                let is_answer = is_answer(&event);
                let changed = self.known.service_accounts.apply(usable(event), keyed_account);
                (WatchedKind::ServiceAccounts, is_answer, changed)
            }
            Change::Failed(kind, error) => {
                self.watch_health.failed(kind, error);
                return false;
            }
        };
        if is_answer {
            self.watch_health.works(kind);
        }
        changed
    }

    fn is_synced(&self, kind: WatchedKind) -> bool {
        match kind {
            WatchedKind::Pods => self.known.pods.is_synced(),
            WatchedKind::Namespaces => self.known.namespaces.is_synced(),
            WatchedKind::ServiceAccounts => self.known.service_accounts.is_synced(),
        }
    }

    fn is_from_last_run(&self, kind: WatchedKind) -> bool {
        match kind {
            WatchedKind::Pods => self.known.pods.is_from_last_run(),
            WatchedKind::Namespaces => self.known.namespaces.is_from_last_run(),
            WatchedKind::ServiceAccounts => self.known.service_accounts.is_from_last_run(),
        }
    }

    fn report(&self) {
        for kind in WatchedKind::ALL
            .into_iter()
            .filter(|kind| self.kept.watches(*kind))
        {
            let failure = self.watch_health.of(kind);
            let why = failure.map_or_else(
                || "the API server has not listed them yet".to_owned(),
                ToString::to_string,
            );
            let condition = if self.is_synced(kind) && failure.is_none() {
                Condition::Fine
            } else if self.is_synced(kind) {
                Condition::Degraded(format!("{why}; the last known state stays in force"))
            } else if self.is_from_last_run(kind) {
                Condition::Degraded(format!("{why}; those of the last run are served"))
            } else {
                Condition::Failing(why)
            };
            self.health.set(kind.part(), condition);
        }
    }
}

impl KeptAnnotations {
    fn watches(&self, kind: WatchedKind) -> bool {
        match kind {
            WatchedKind::Pods => true,
            WatchedKind::Namespaces => !self.namespaces.is_empty(),
            WatchedKind::ServiceAccounts => !self.service_accounts.is_empty(),
        }
    }
}

impl Source for Watch {
    async fn run(mut self, publish: watch::Sender<Arc<Inventory>>) {
        let mut changes = Box::pin(self.changes().ready_chunks(MAX_BATCH));
        let mut look = tokio::time::interval(POLL_INTERVAL);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut listed: Option<Instant> = None;
        loop {
            let given_back = listed.map_or_else(Instant::now, |at| at + MEMORY_RELEASE_DELAY);
            tokio::select! {
                Some(batch) = changes.next() => {
                    let mut changed = false;
                    for change in batch {
                        if change.ends_list() {
                            listed = Some(Instant::now());
                        }
                        changed |= self.apply(change);
                    }
                    if changed {
                        let inventory = Arc::new(self.inventory());
                        if publish.send(inventory).is_err() {
                            return;
                        }
                        self.snapshot_file.schedule();
                    }
                    self.report();
                }
                _ = look.tick(), if !self.watch_health.is_empty() => {
                    self.watch_health.recover(&self.api);
                    self.report();
                }
                () = self.snapshot_file.due() => self.snapshot_file.write(&self.known).await,
                () = tokio::time::sleep_until(given_back), if listed.is_some() => {
                    listed = None;
                    // This blocks, because it reads files and takes the heap's lock. Its result is not needed.
                    drop(tokio::task::spawn_blocking(memory::release_unused));
                }
            }
        }
    }
}

/// Returns the configuration of a watch. Lists come from the API server's cache, like those of the kubelet, so that
/// 5,000 nodes that list at the same time are no load on etcd. The server ends watches after five minutes, and they
/// continue from the last version.
fn config() -> watcher::Config {
    watcher::Config {
        // A list in pages would be read from etcd.
        page_size: None,
        ..watcher::Config::default().any_semantic()
    }
}
