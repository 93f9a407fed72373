//! Keeps a snapshot of this node's pods in the runtime directory, so that an agent that starts while the API server
//! cannot be reached can serve them. The file contains no secret, but its mode is 0600, because it shows which pod
//! has which role.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;

use super::{KeptAnnotations, Stores};
use crate::pods::{Namespace, Pod, ServiceAccount};
use crate::runtime_dir::{atomic_file, make_runtime_dir};

/// The version of the file's format. A file of another version is not read.
const FORMAT_VERSION: u32 = 2;

/// The prefix of the file's name and of its temporary files.
const FILE_PREFIX: &str = "pods.";

const FILE_NAME: &str = "pods.json";

/// The time after a change before the file is written, so that changes in a burst cause one write.
const WRITE_DELAY: Duration = Duration::from_millis(500);

/// The content of the file: the pods, with their namespaces and service accounts.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Snapshot {
    version: u32,
    node: String,
    kept: KeptAnnotations,
    pub pods: Vec<Pod>,
    /// The namespaces of the pods; `None` if namespaces were not known.
    pub namespaces: Option<Vec<Namespace>>,
    pub service_accounts: Option<Vec<ServiceAccount>>,
}

/// The file of the snapshot.
#[derive(Debug)]
pub struct SnapshotFile {
    path: PathBuf,
    node: String,
    kept: KeptAnnotations,
    due: Option<Instant>,
    is_error_logged: bool,
}

impl SnapshotFile {
    pub fn new(runtime_dir: &Path, node: String, kept: KeptAnnotations) -> Self {
        remove_remains(runtime_dir);
        Self {
            path: runtime_dir.join(FILE_NAME),
            node,
            kept,
            due: None,
            is_error_logged: false,
        }
    }

    /// Loads the snapshot of the last run. Returns `None` if it is that of another node or of other kept annotations,
    /// because an annotation that was not kept must not look like one that does not exist.
    pub fn load(&self) -> Option<Snapshot> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                warn!(
                    "cannot read {}, and does not use it: {error}",
                    self.path.display()
                );
                return None;
            }
        };
        match serde_json::from_slice::<Snapshot>(&text) {
            Ok(found) => {
                (found.version == FORMAT_VERSION && found.node == self.node && found.kept == self.kept)
                    .then_some(found)
            }
            Err(error) => {
                warn!(
                    "cannot parse {}, and does not use it: {error}",
                    self.path.display()
                );
                None
            }
        }
    }

    /// Schedules a write after a change.
    pub fn schedule(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + WRITE_DELAY);
    }

    /// Waits until a scheduled write is due.
    pub async fn due(&self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn snapshot(&self, known: &Stores) -> Snapshot {
        let pods: Vec<Pod> = known.pods.all().map(|pod| (*pod).clone()).collect();
        let namespaces: BTreeSet<&str> = pods.iter().map(|pod| pod.namespace.as_str()).collect();
        let accounts: BTreeSet<(&str, &str)> = pods
            .iter()
            .map(|pod| (pod.namespace.as_str(), pod.service_account.as_str()))
            .collect();
        let is_asked = |namespace: &Namespace| namespaces.contains(namespace.name.as_str());
        let is_used = |account: &ServiceAccount| {
            accounts.contains(&(account.namespace.as_str(), account.name.as_str()))
        };
        Snapshot {
            version: FORMAT_VERSION,
            node: self.node.clone(),
            kept: self.kept.clone(),
            namespaces: known
                .namespaces
                .is_known()
                .then(|| picked(known.namespaces.all(), is_asked)),
            service_accounts: known
                .service_accounts
                .is_known()
                .then(|| picked(known.service_accounts.all(), is_used)),
            pods,
        }
    }

    /// Writes the snapshot, unless the API server has not listed the pods yet. An error is logged and has no other
    /// effect.
    pub async fn write(&mut self, known: &Stores) {
        self.due = None;
        if !known.pods.is_synced() {
            return;
        }
        let (path, snapshot) = (self.path.clone(), self.snapshot(known));
        let written = tokio::task::spawn_blocking(move || write(&path, &snapshot)).await;
        let error = match written {
            Ok(Ok(())) => {
                self.is_error_logged = false;
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if !std::mem::replace(&mut self.is_error_logged, true) {
            warn!(
                "cannot write {}, so an agent that starts while the API server cannot be reached will not know the pods: \
                 {error}",
                self.path.display()
            );
        }
    }
}

/// Removes temporary files that agents were writing when they were killed.
fn remove_remains(runtime_dir: &Path) {
    let entries = fs::read_dir(runtime_dir).into_iter().flatten();
    for entry in entries.filter_map(Result::ok) {
        atomic_file::remove_stale(&entry.path(), FILE_PREFIX);
    }
}

fn picked<T: Clone>(all: impl Iterator<Item = Arc<T>>, is_wanted: impl Fn(&T) -> bool) -> Vec<T> {
    all.filter(|object| is_wanted(object))
        .map(|object| (*object).clone())
        .collect()
}

/// Replaces the file as a whole, because another instance may write it too.
fn write(path: &Path, snapshot: &Snapshot) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        make_runtime_dir(dir).map_err(io::Error::other)?;
    }
    atomic_file::write(path, &serde_json::to_vec(snapshot)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::kubernetes::store::Store;
    use crate::pods::kubernetes::{keyed_account, keyed_namespace, keyed_pod};
    use kube::runtime::watcher::Event;
    use std::os::unix::fs::PermissionsExt as _;

    fn kept() -> KeptAnnotations {
        KeptAnnotations {
            pods: vec!["role".to_owned()],
            namespaces: vec!["permitted".to_owned()],
            service_accounts: Vec::new(),
        }
    }

    fn pod(name: &str, namespace: &str) -> Pod {
        let object = serde_json::json!({
            "metadata": {"name": name, "namespace": namespace, "uid": name, "annotations": {"role": "r"}},
            "spec": {"serviceAccountName": "sa", "containers": []},
            "status": {"podIPs": [{"ip": "10.0.0.1"}]},
        });
        Pod::from_api(serde_json::from_value(object).unwrap()).unwrap()
    }

    fn stores() -> Stores {
        let mut pods = Store::default();
        pods.apply(Some(Event::InitApply(pod("a", "apps"))), keyed_pod);
        pods.apply(Some(Event::InitDone), keyed_pod);
        let namespace = |name: &str| Namespace {
            name: name.to_owned(),
            annotations: [("permitted".to_owned(), ".*".to_owned())].into(),
        };
        let account = |name: &str| ServiceAccount {
            namespace: "apps".to_owned(),
            name: name.to_owned(),
            annotations: Default::default(),
        };
        Stores {
            pods,
            namespaces: Store::from_last_run(
                [namespace("apps"), namespace("other")]
                    .into_iter()
                    .map(keyed_namespace),
            ),
            service_accounts: Store::from_last_run(
                [account("sa"), account("other")].into_iter().map(keyed_account),
            ),
        }
    }

    #[tokio::test]
    async fn a_snapshot_has_only_what_the_nodes_pods_need_and_is_loaded_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let mut file = SnapshotFile::new(&run, "node1".to_owned(), kept());
        assert!(file.load().is_none());
        file.schedule();
        file.due().await;
        file.write(&stores()).await;
        let again = SnapshotFile::new(&run, "node1".to_owned(), kept())
            .load()
            .unwrap();
        assert_eq!(again.pods, [pod("a", "apps")]);
        let (namespaces, accounts) = (again.namespaces.unwrap(), again.service_accounts.unwrap());
        assert_eq!((namespaces.len(), namespaces[0].name.as_str()), (1, "apps"));
        assert_eq!((accounts.len(), accounts[0].name.as_str()), (1, "sa"));
        let mode = fs::metadata(&file.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        assert_eq!(
            fs::read_dir(&run).unwrap().count(),
            1,
            "nothing is left beside it"
        );
    }

    #[tokio::test]
    async fn a_snapshot_of_another_node_or_of_other_annotations_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let file = |node: &str, kept: KeptAnnotations| SnapshotFile::new(dir.path(), node.to_owned(), kept);
        let mut first = file("node1", kept());
        first.write(&stores()).await;
        assert!(file("node1", kept()).load().is_some());
        assert!(file("node2", kept()).load().is_none());
        let other = KeptAnnotations {
            pods: vec!["another".to_owned()],
            ..kept()
        };
        assert!(file("node1", other).load().is_none());
        fs::write(&first.path, "{").unwrap();
        assert!(file("node1", kept()).load().is_none());
    }

    #[tokio::test]
    async fn no_snapshot_is_written_before_the_api_server_has_listed_the_pods() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SnapshotFile::new(dir.path(), "node1".to_owned(), kept());
        file.write(&Stores::default()).await;
        assert!(file.load().is_none());
    }

    #[tokio::test]
    async fn objects_that_were_never_listed_are_not_stored_as_an_empty_list() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = SnapshotFile::new(dir.path(), "node1".to_owned(), kept());
        let untold = Stores {
            namespaces: Store::default(),
            ..stores()
        };
        file.write(&untold).await;
        assert_eq!(file.load().unwrap().namespaces, None);
    }
}
