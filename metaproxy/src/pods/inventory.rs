//! Pods, namespaces and service accounts, trimmed to what is used.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1;
use kube::core::ObjectMeta;
use thiserror::Error;

use super::PodUid;

/// Annotations of an object.
pub type Annotations = BTreeMap<String, String>;

/// The kubelet's hash of a static pod's manifest (32 hexadecimal digits), after which it names the pod's cgroup. The
/// mirror pod in the API has another UID.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// What makes a pod a mirror pod; ordinary ones have no use for a hash.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.uid`
    pub uid: PodUid,
    /// The UID in the path of a static pod's cgroup.
    pub static_uid: Option<PodUid>,
    /// `metadata.namespace`, `default` where there is none.
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.serviceAccountName`, `default` where there is none.
    pub service_account: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// `status.podIPs`, as far as they are known.
    pub ips: Vec<IpAddr>,
    /// Ports of the node that its containers ask for.
    pub host_ports: Vec<u16>,
    /// `spec.nodeName`
    pub node: Option<String>,
}

/// Why an object can't be used. Others are not affected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Problem {
    /// No name.
    #[error("{0} without metadata.name")]
    NoName(&'static str),
    /// No UID.
    #[error(
        "pod {namespace}/{name} has no metadata.uid, by which its processes are known; it is not served. `kubectl get \
         pod -o yaml` shows the UID"
    )]
    NoUid {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A UID that no kubelet would make a cgroup of.
    #[error("pod {namespace}/{name}: metadata.uid {error}; it is not served")]
    BadUid {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: super::InvalidUid,
    },
}

impl Pod {
    /// From the API's object.
    pub fn from_api(pod: v1::Pod) -> Result<Self, Problem> {
        let (namespace, name) = named("pod", &pod.metadata)?;
        let Some(uid) = pod.metadata.uid.filter(|uid| !uid.is_empty()) else {
            return Err(Problem::NoUid { namespace, name });
        };
        let uid = match uid.parse() {
            Ok(uid) => uid,
            Err(error) => {
                return Err(Problem::BadUid {
                    namespace,
                    name,
                    error,
                });
            }
        };
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let spec = pod.spec.unwrap_or_default();
        let ips = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        let containers = spec
            .containers
            .into_iter()
            .chain(spec.init_containers.unwrap_or_default());
        let host_ports = containers
            .flat_map(|container| container.ports.unwrap_or_default())
            .filter_map(|port| u16::try_from(port.host_port?).ok())
            .collect();
        Ok(Self {
            static_uid: static_uid(&annotations),
            uid,
            namespace,
            name,
            service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
            annotations,
            host_network: spec.host_network.unwrap_or_default(),
            ips: ips.into_iter().filter_map(|ip| ip.ip.parse().ok()).collect(),
            host_ports,
            node: spec.node_name,
        })
    }
}

/// Anybody may annotate a pod, so what is not exactly a hash, on a mirror pod, is nobody's UID.
fn static_uid(annotations: &Annotations) -> Option<PodUid> {
    let is_hash = |hash: &&String| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = annotations.get(CONFIG_HASH).filter(is_hash)?;
    annotations
        .contains_key(CONFIG_MIRROR)
        .then(|| hash.parse().ok())
        .flatten()
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn named(kind: &'static str, metadata: &ObjectMeta) -> Result<(String, String), Problem> {
    let name = metadata.name.clone().ok_or(Problem::NoName(kind))?;
    Ok((
        metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name,
    ))
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`
    pub name: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
}

impl Namespace {
    /// From the API's object.
    pub fn from_api(namespace: v1::Namespace) -> Result<Self, Problem> {
        let (_, name) = named("namespace", &namespace.metadata)?;
        Ok(Self {
            name,
            annotations: namespace.metadata.annotations.unwrap_or_default(),
        })
    }
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
}

impl ServiceAccount {
    /// From the API's object.
    pub fn from_api(account: v1::ServiceAccount) -> Result<Self, Problem> {
        let (namespace, name) = named("service account", &account.metadata)?;
        Ok(Self {
            namespace,
            name,
            annotations: account.metadata.annotations.unwrap_or_default(),
        })
    }
}

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
