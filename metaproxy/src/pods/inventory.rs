//! Everything that is known at one moment, found by what a connection is known by.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Namespace, Pod, PodUid, ServiceAccount};

fn insert(index: &mut HashMap<PodUid, Known>, uid: &PodUid, pod: &Arc<Pod>) {
    let known = match index.remove(uid) {
        None => Known::Pod(Arc::clone(pod)),
        Some(Known::Pod(other)) => Known::Ambiguous(vec![other, Arc::clone(pod)]),
        Some(Known::Ambiguous(mut pods)) => {
            pods.push(Arc::clone(pod));
            Known::Ambiguous(pods)
        }
    };
    index.insert(uid.clone(), known);
}

/// What a UID leads to.
#[derive(Clone, Debug)]
pub enum Known {
    /// One pod.
    Pod(Arc<Pod>),
    /// Several, so none of them.
    Ambiguous(Vec<Arc<Pod>>),
}

/// Everything that is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pods: HashMap<PodUid, Known>,
    namespaces: HashMap<String, Arc<Namespace>>,
    service_accounts: HashMap<(String, String), Arc<ServiceAccount>>,
}

impl Inventory {
    /// Indexes what a source has. Pods are found by their UID and, static ones, by their hash; a hash is an annotation
    /// and never stands against a UID.
    pub fn new(
        pods: impl IntoIterator<Item = Arc<Pod>>,
        namespaces: impl IntoIterator<Item = Arc<Namespace>>,
        service_accounts: impl IntoIterator<Item = Arc<ServiceAccount>>,
    ) -> Self {
        let (mut index, mut by_hash) = (HashMap::new(), HashMap::new());
        for pod in pods {
            if let Some(hash) = &pod.static_uid {
                insert(&mut by_hash, hash, &pod);
            }
            insert(&mut index, &pod.uid, &pod);
        }
        for (hash, known) in by_hash {
            index.entry(hash).or_insert(known);
        }
        Self {
            pods: index,
            namespaces: namespaces
                .into_iter()
                .map(|namespace| (namespace.name.clone(), namespace))
                .collect(),
            service_accounts: service_accounts
                .into_iter()
                .map(|account| ((account.namespace.clone(), account.name.clone()), account))
                .collect(),
        }
    }

    /// What a UID leads to; `None` where it is not known (yet).
    pub fn by_uid(&self, uid: &PodUid) -> Option<&Known> {
        self.pods.get(uid)
    }

    /// Each pod with the UID it was indexed under; static pods come twice.
    pub fn pods(&self) -> impl Iterator<Item = (&PodUid, &Known)> {
        self.pods.iter()
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.pods()
            .filter(|(uid, known)| matches!(known, Known::Pod(pod) if pod.uid == **uid))
            .count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// A namespace; `None` where it is not known (yet).
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    /// A pod's service account; `None` where it is not known (yet).
    pub fn service_account(&self, pod: &Pod) -> Option<&ServiceAccount> {
        self.service_accounts
            .get(&(pod.namespace.clone(), pod.service_account.clone()))
            .map(AsRef::as_ref)
    }

    /// Ports of this node that its pods ask for.
    pub fn host_ports(&self) -> impl Iterator<Item = u16> {
        self.pods.values().flat_map(|known| match known {
            Known::Pod(pod) => pod.host_ports.clone(),
            Known::Ambiguous(_) => Vec::new(),
        })
    }
}
