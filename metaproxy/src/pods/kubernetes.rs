//! Pods from the API server: those of this node, and of namespaces and service accounts only the metadata. Nothing is
//! polled; a watch that breaks goes on where it was, or begins anew where the API server has forgotten that (410).
//!
//! What was known stays in force while the API server can't be reached, and is kept in the runtime directory, so that an
//! agent that starts meanwhile knows it too.

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

use self::change::{Change, of, of_account, of_namespace, of_pod, sound, tells};
use self::snapshot::{Memory, Snapshot};
use self::store::Store;
use self::stream::events;
use self::watch_health::{Kind, WatchHealth};
use super::annotations::trimmed;
use super::api::PodObject;
use super::{Inventory, Namespace, Pod, PodUid, ServiceAccount, Source};
use crate::apiserver::{ApiServer, REQUEST_TIMEOUT, with_timeout};
use crate::memory;
use crate::telemetry::health::{Condition, Health, Part};

/// Between two looks at whether a watch that broke has been taken up again.
const LOOK: Duration = Duration::from_millis(500);

/// After a list: what else it leads to (sessions, events) has had its memory by then.
const AFTER_LIST: Duration = Duration::from_secs(3);

/// Changes that are taken together where they come together.
const BATCH: usize = 1024;

/// Annotations that are kept; all others are dropped before anything is stored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Kept {
    /// Of pods.
    pub pods: Vec<String>,
    /// Of namespaces; none where they are not asked.
    pub namespaces: Vec<String>,
    /// Of service accounts; none where they are not asked.
    pub service_accounts: Vec<String>,
}

/// The watches.
#[derive(Debug)]
pub struct Watch {
    api: ApiServer,
    node: String,
    kept: Kept,
    known: Stores,
    troubles: WatchHealth,
    memory: Memory,
    health: Health,
}

/// What is known, kind by kind.
#[derive(Debug, Default)]
struct Stores {
    pods: Store<PodUid, Pod>,
    namespaces: Store<String, Namespace>,
    service_accounts: Store<(String, String), ServiceAccount>,
}

/// Some pods of a node, once: for commands, which watch nothing.
///
/// # Errors
/// Where the API server does not say.
pub async fn pods_of_node(api: &ApiServer, node: &str) -> Result<Vec<Pod>, String> {
    const ENOUGH: u32 = 100;
    let params = ListParams::default()
        .fields(&format!("spec.nodeName={node}"))
        .limit(ENOUGH);
    let pods = Api::<PodObject>::all(api.client());
    let found = with_timeout(REQUEST_TIMEOUT, pods.list(&params)).await?;
    let pods = found.items.into_iter().map(Pod::from_api);
    Ok(pods.filter_map(Result::ok).collect())
}

impl Watch {
    /// The parts of the agent that watches report about.
    pub fn parts(kept: &Kept) -> Vec<Part> {
        Kind::ALL
            .into_iter()
            .filter(|kind| kept.asks(*kind))
            .map(Kind::part)
            .collect()
    }

    /// With what the runtime directory remembers of this node's pods.
    pub fn open(api: ApiServer, node: String, kept: Kept, runtime_dir: &Path, health: Health) -> Self {
        let memory = Memory::new(runtime_dir, node.clone(), kept.clone());
        let mut known = Stores::default();
        if let Some(Snapshot {
            pods,
            namespaces,
            service_accounts,
            ..
        }) = memory.recall()
        {
            info!(
                pods = pods.len(),
                "until the API server tells the pods, those of the last run are served"
            );
            known.pods = Store::remembered(pods.into_iter().map(of_pod));
            if let Some(namespaces) = namespaces {
                known.namespaces = Store::remembered(namespaces.into_iter().map(of_namespace));
            }
            if let Some(accounts) = service_accounts {
                known.service_accounts = Store::remembered(accounts.into_iter().map(of_account));
            }
        }
        let watch = Self {
            api,
            node,
            kept,
            known,
            troubles: WatchHealth::default(),
            memory,
            health,
        };
        watch.report();
        watch
    }

    /// What is known so far.
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
        let pods = of(pods, Kind::Pods, Change::Pod, move |pod| {
            Pod::from_api(pod).map(|pod| Pod {
                annotations: trimmed(pod.annotations, &keys),
                ..pod
            })
        });
        let mut streams = vec![pods];
        if self.kept.asks(Kind::Namespaces) {
            let keys = self.kept.namespaces.clone();
            let api = Api::<PartialObjectMeta<v1::Namespace>>::all(client.clone());
            let namespaces = events(api, config());
            streams.push(of(
                namespaces,
                Kind::Namespaces,
                Change::Namespace,
                move |object| {
                    Namespace::from_api(object.metadata).map(|namespace| Namespace {
                        annotations: trimmed(namespace.annotations, &keys),
                        ..namespace
                    })
                },
            ));
        }
        if self.kept.asks(Kind::ServiceAccounts) {
            let keys = self.kept.service_accounts.clone();
            let api = Api::<PartialObjectMeta<v1::ServiceAccount>>::all(client);
            let accounts = events(api, config());
            streams.push(of(
                accounts,
                Kind::ServiceAccounts,
                Change::ServiceAccount,
                move |object| {
                    ServiceAccount::from_api(object.metadata).map(|account| ServiceAccount {
                        annotations: trimmed(account.annotations, &keys),
                        ..account
                    })
                },
            ));
        }
        select_all(streams)
    }

    /// Takes a change; whether anything that counts is different now.
    fn take(&mut self, change: Change) -> bool {
        let (kind, tells, changed) = match change {
            Change::Pod(event) => (
                Kind::Pods,
                tells(&event),
                self.known.pods.take(sound(event), of_pod),
            ),
            Change::Namespace(event) => {
                let tells = tells(&event);
                (
                    Kind::Namespaces,
                    tells,
                    self.known.namespaces.take(sound(event), of_namespace),
                )
            }
            Change::ServiceAccount(event) => {
                let tells = tells(&event);
                let changed = self.known.service_accounts.take(sound(event), of_account);
                (Kind::ServiceAccounts, tells, changed)
            }
            Change::Failed(kind, error) => {
                self.troubles.note(kind, error);
                return false;
            }
        };
        if tells {
            self.troubles.works(kind);
        }
        changed
    }

    fn is_synced(&self, kind: Kind) -> bool {
        match kind {
            Kind::Pods => self.known.pods.is_synced(),
            Kind::Namespaces => self.known.namespaces.is_synced(),
            Kind::ServiceAccounts => self.known.service_accounts.is_synced(),
        }
    }

    fn is_remembered(&self, kind: Kind) -> bool {
        match kind {
            Kind::Pods => self.known.pods.is_remembered(),
            Kind::Namespaces => self.known.namespaces.is_remembered(),
            Kind::ServiceAccounts => self.known.service_accounts.is_remembered(),
        }
    }

    fn report(&self) {
        for kind in Kind::ALL.into_iter().filter(|kind| self.kept.asks(*kind)) {
            let trouble = self.troubles.of(kind);
            let why = trouble.map_or_else(
                || "the API server has not told them yet".to_owned(),
                ToString::to_string,
            );
            let condition = if self.is_synced(kind) && trouble.is_none() {
                Condition::Fine
            } else if self.is_synced(kind) {
                Condition::Degraded(format!("{why}; what was known stays in force"))
            } else if self.is_remembered(kind) {
                Condition::Degraded(format!("{why}; those of the last run are served"))
            } else {
                Condition::Failing(why)
            };
            self.health.set(kind.part(), condition);
        }
    }
}

impl Kept {
    fn asks(&self, kind: Kind) -> bool {
        match kind {
            Kind::Pods => true,
            Kind::Namespaces => !self.namespaces.is_empty(),
            Kind::ServiceAccounts => !self.service_accounts.is_empty(),
        }
    }
}

impl Source for Watch {
    async fn run(mut self, publish: watch::Sender<Arc<Inventory>>) {
        let mut changes = Box::pin(self.changes().ready_chunks(BATCH));
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut listed: Option<Instant> = None;
        loop {
            let given_back = listed.map_or_else(Instant::now, |at| at + AFTER_LIST);
            tokio::select! {
                Some(batch) = changes.next() => {
                    let mut changed = false;
                    for change in batch {
                        if change.ends_list() {
                            listed = Some(Instant::now());
                        }
                        changed |= self.take(change);
                    }
                    if changed {
                        let inventory = Arc::new(self.inventory());
                        if publish.send(inventory).is_err() {
                            return;
                        }
                        self.memory.note();
                    }
                    self.report();
                }
                _ = look.tick(), if !self.troubles.is_empty() => {
                    self.troubles.recover(&self.api);
                    self.report();
                }
                () = self.memory.due() => self.memory.write(&self.known).await,
                () = tokio::time::sleep_until(given_back), if listed.is_some() => {
                    listed = None;
                    // It reads files and takes the heap's lock. Nobody waits for its end.
                    drop(tokio::task::spawn_blocking(memory::give_back));
                }
            }
        }
    }
}

/// From the API server's memory, as the kubelet lists its pods: 5,000 nodes that ask at once are no load on etcd. Watches
/// end after five minutes at the server, and are taken up where they were.
fn config() -> watcher::Config {
    watcher::Config {
        // Pages are cut from etcd.
        page_size: None,
        ..watcher::Config::default().any_semantic()
    }
}
