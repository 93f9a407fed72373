//! The pods, namespaces and service accounts that are known at one moment, indexed for look-ups by connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use metaproxy_common::verdict::Family;

use super::{HostPort, Mirror, Namespace, Pod, PodUid, ServiceAccount};

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

/// The pods of a UID.
#[derive(Clone, Debug)]
pub enum Known {
    /// One pod.
    Pod(Arc<Pod>),
    /// Several pods, so none of them can be served.
    Ambiguous(Vec<Arc<Pod>>),
}

/// The objects that are known at one moment.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    pods: HashMap<PodUid, Known>,
    namespaces: HashMap<String, Arc<Namespace>>,
    service_accounts: HashMap<(String, String), Arc<ServiceAccount>>,
}

impl Inventory {
    /// Indexes the objects of a source. Pods are found by their UID, and static pods also by their hash if the
    /// kubelet has confirmed it. A hash is an annotation, so if it equals the UID of another pod, the UID counts. The
    /// order of the pods does not matter.
    pub fn new(
        pods: impl IntoIterator<Item = Arc<Pod>>,
        namespaces: impl IntoIterator<Item = Arc<Namespace>>,
        service_accounts: impl IntoIterator<Item = Arc<ServiceAccount>>,
    ) -> Self {
        let (mut index, mut by_hash) = (HashMap::new(), HashMap::new());
        for pod in pods {
            if let Mirror::Confirmed(hash) = &pod.mirror {
                insert(&mut by_hash, hash, &pod);
            }
            insert(&mut index, &pod.uid, &pod);
        }
        for (hash, known) in by_hash {
            index.entry(hash).or_insert(known);
        }
        for known in index.values_mut() {
            if let Known::Ambiguous(pods) = known {
                pods.sort_by_key(|pod| (pod.to_string(), pod.uid.clone()));
            }
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

    /// Returns the pods of a UID; `None` if it is not known (yet).
    pub fn by_uid(&self, uid: &PodUid) -> Option<&Known> {
        self.pods.get(uid)
    }

    /// Returns each pod with the UID under which it is indexed. Static pods are returned twice.
    pub fn pods(&self) -> impl Iterator<Item = (&PodUid, &Known)> {
        self.pods.iter()
    }

    /// Returns the number of pods.
    pub fn len(&self) -> usize {
        self.pods()
            .filter(|(uid, known)| matches!(known, Known::Pod(pod) if pod.uid == **uid))
            .count()
    }

    /// Reports whether there is no pod.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// Returns a namespace; `None` if it is not known (yet).
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    /// Returns a pod's service account; `None` if it is not known (yet).
    pub fn service_account(&self, pod: &Pod) -> Option<&ServiceAccount> {
        self.service_accounts
            .get(&(pod.namespace.clone(), pod.service_account.clone()))
            .map(AsRef::as_ref)
    }

    /// Returns the address family that all pods have, except those of [`Self::other_families`]; `None` while no pod's
    /// address is known.
    ///
    /// A cluster has one primary family, which comes first in `status.podIPs`, even if the cluster is dual-stack
    /// (Kubernetes, "IPv4/IPv6 dual-stack"). It is IPv6 only if the first address of every pod is.
    pub fn family(&self) -> Option<Family> {
        let mut families = self.each_pod().filter_map(|(_, pod)| pod.family()).peekable();
        families.peek()?;
        let is_v6 = families.all(|family| family == Family::V6);
        Some(if is_v6 { Family::V6 } else { Family::V4 })
    }

    /// Returns the families of pods that have no address of [`Self::family`], by the UIDs that their cgroups may
    /// have. With some network plugins, an annotation of a pod chooses its family.
    pub fn other_families(&self) -> BTreeMap<PodUid, Family> {
        let Some(common) = self.family() else {
            return BTreeMap::new();
        };
        self.each_pod()
            .filter(|(_, pod)| !pod.has_address_of(common))
            .filter_map(|(uid, pod)| Some((uid.clone(), pod.family()?)))
            .collect()
    }

    /// Returns each pod that shares its UID with no other pod.
    fn each_pod(&self) -> impl Iterator<Item = (&PodUid, &Pod)> {
        self.pods.iter().filter_map(|(uid, known)| match known {
            Known::Pod(pod) => Some((uid, pod.as_ref())),
            Known::Ambiguous(_) => None,
        })
    }

    /// Returns the host ports of all pods that have not finished, each with its pod. Pods that share a UID count too.
    pub fn host_ports(&self) -> impl Iterator<Item = (&Pod, HostPort)> {
        let claimants = self.pods.iter().flat_map(|(uid, known)| {
            let pods = match known {
                Known::Pod(pod) => std::slice::from_ref(pod),
                Known::Ambiguous(pods) => pods.as_slice(),
            };
            // A static pod is also indexed under its hash.
            pods.iter().filter(move |pod| pod.uid == *uid && !pod.finished)
        });
        claimants.flat_map(|pod| pod.host_ports.iter().map(move |port| (pod.as_ref(), *port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    /// Makes a pod whose annotations claim that it is the mirror pod of the hash.
    fn claimant(name: &str, owned_by: Option<&str>, started: bool) -> Arc<Pod> {
        let owner = |node| json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "controller": true }]);
        let object = json!({
            "metadata": {
                "name": name, "namespace": "apps", "uid": name,
                "annotations": { "kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH },
                "ownerReferences": owned_by.map(owner),
            },
            "spec": { "nodeName": "n1", "hostNetwork": true, "containers": [] },
            "status": { "startTime": started.then_some("2026-01-01T00:00:00Z") },
        });
        Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
    }

    fn of_hash(pods: Vec<Arc<Pod>>) -> Vec<String> {
        let inventory = Inventory::new(pods, [], []);
        match inventory.by_uid(&HASH.parse().unwrap()) {
            None => Vec::new(),
            Some(Known::Pod(pod)) => vec![pod.name.clone()],
            Some(Known::Ambiguous(pods)) => pods.iter().map(|pod| pod.name.clone()).collect(),
        }
    }

    /// Generates the claims that a user with the right to create pods can make: without a status, and with any owner.
    fn forged() -> impl Strategy<Value = Vec<Arc<Pod>>> {
        let owner = prop_oneof![Just(None), Just(Some("n1")), Just(Some("n2"))];
        prop::collection::vec(owner, 0..6).prop_map(|owners| {
            let name = |number| format!("forged-{number}");
            let numbered = owners.into_iter().enumerate();
            numbered
                .map(|(number, owner)| claimant(&name(number), owner, false))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn forged_claims_neither_deny_nor_take_over_a_hash_in_any_order(
            pods in forged().prop_flat_map(|mut pods| {
                pods.push(claimant("genuine", Some("n1"), true));
                Just(pods).prop_shuffle()
            })
        ) {
            prop_assert_eq!(of_hash(pods), ["genuine"]);
        }

        #[test]
        fn forged_claims_alone_are_no_pod(pods in forged()) {
            prop_assert_eq!(of_hash(pods), Vec::<String>::new());
        }

        #[test]
        fn several_claims_that_a_kubelet_confirms_are_ambiguous_in_any_order(
            pods in Just(vec![
                claimant("a", Some("n1"), true),
                claimant("b", Some("n1"), true),
                claimant("forged", Some("n1"), false),
            ]).prop_shuffle()
        ) {
            prop_assert_eq!(of_hash(pods), ["a", "b"]);
        }
    }

    /// Makes pods with these `status.podIPs`; an `h` before them makes a hostNetwork pod.
    fn with_ips(pods: &str) -> Inventory {
        let pods = pods.split(',').enumerate().map(|(number, ips)| {
            let host_network = ips.contains('h');
            let ips = ips.split_whitespace().filter(|ip| *ip != "h");
            let ips: Vec<_> = ips.map(|ip| json!({ "ip": ip })).collect();
            let object = json!({
                "metadata": { "name": format!("p{number}"), "namespace": "apps", "uid": format!("p{number}") },
                "spec": { "hostNetwork": host_network, "containers": [] },
                "status": { "podIPs": ips },
            });
            Arc::new(Pod::from_api(serde_json::from_value(object).unwrap()).unwrap())
        });
        Inventory::new(pods, [], [])
    }

    #[rstest::rstest]
    #[case::no_address_yet("", None, &[])]
    #[case::the_nodes_own_addresses("h 2001:db8::1", None, &[])]
    #[case::ipv4("10.0.0.1, , h 2001:db8::1", Some(Family::V4), &[])]
    #[case::ipv6("fd00::1, , h 10.0.0.1", Some(Family::V6), &[])]
    #[case::dual_stack("10.0.0.1 fd00::1", Some(Family::V4), &[])]
    #[case::dual_stack_of_ipv6("fd00::1 10.0.0.1, fd00::2", Some(Family::V6), &[])]
    #[case::becoming_dual_stack("10.0.0.1, 10.0.0.2 fd00::2", Some(Family::V4), &[])]
    #[case::one_of_another_family("10.0.0.1 fd00::1, fd00::2", Some(Family::V4), &[("p1", Family::V6)])]
    #[case::mapped("::ffff:10.0.0.1", Some(Family::V4), &[])]
    fn the_family_is_that_of_the_pods_first_addresses(
        #[case] ips: &str,
        #[case] family: Option<Family>,
        #[case] others: &[(&str, Family)],
    ) {
        let inventory = with_ips(ips);
        assert_eq!(inventory.family(), family);
        let others = others.iter().map(|(uid, family)| (uid.parse().unwrap(), *family));
        assert_eq!(inventory.other_families(), others.collect());
    }
}
