//! Updates the kernel's maps of single pods from the inventory.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::{HashMap, MapData};
use metaproxy_common::layout::PodFamily;
use metaproxy_common::verdict::Family;
use tracing::warn;

use crate::cgroups::{PodsCgroup, holds_this_process};
use crate::pods::PodUid;

/// The maximum number of levels below a pod's cgroup at which this process is looked for. Runtimes nest the cgroups
/// of containers.
const MAX_NESTING: u8 = 3;

/// The wanted content of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedPods {
    /// The pods whose connections from the node's network namespace are intercepted. These are hostNetwork pods that
    /// have a role, and all pods with a network of their own. A pod with a network of its own has a socket of the
    /// node's namespace only if another pod has passed it on.
    pub in_node_netns: BTreeSet<PodUid>,
    /// The families of pods that have no address of the other pods' family.
    pub families: BTreeMap<PodUid, Family>,
}

/// The maps of pods, whose keys are the ids of the pods' cgroups.
#[derive(Debug)]
pub struct PodMaps {
    host_pods: PodMap<u8>,
    families: PodMap<PodFamily>,
}

impl PodMaps {
    /// Takes both maps, which must be empty.
    pub fn new(host_pods: HashMap<MapData, u64, u8>, families: HashMap<MapData, u64, PodFamily>) -> Self {
        Self {
            host_pods: PodMap::new(
                "a pod for interception in the node's network namespace",
                host_pods,
            ),
            families: PodMap::new("the address family of a pod", families),
        }
    }

    /// Updates the maps to the wanted content. A pod whose cgroup does not exist (yet) is left out.
    pub(super) fn update(&mut self, wanted: &ListedPods, pods: Option<&PodsCgroup>) {
        let host_pods = wanted.in_node_netns.iter().map(|uid| (uid, 0));
        self.host_pods.update(host_pods, pods);
        let families = wanted.families.iter();
        self.families
            .update(families.map(|(uid, family)| (uid, PodFamily::of(*family))), pods);
    }
}

/// A map of pods, with a copy of its entries.
#[derive(Debug)]
struct PodMap<V> {
    /// The description of an entry, for log lines.
    what: &'static str,
    map: HashMap<MapData, u64, V>,
    entries: BTreeMap<u64, V>,
}

impl<V: aya::Pod + PartialEq> PodMap<V> {
    fn new(what: &'static str, map: HashMap<MapData, u64, V>) -> Self {
        Self {
            what,
            map,
            entries: BTreeMap::new(),
        }
    }

    fn update<'a>(&mut self, wanted: impl Iterator<Item = (&'a PodUid, V)>, pods: Option<&PodsCgroup>) {
        let found: BTreeMap<u64, V> = wanted
            .filter_map(|(uid, value)| Some((pods?.find_pod(uid)?, value)))
            // The agent's own calls to the metadata service must not be redirected to the agent.
            .filter(|((path, id), _)| self.entries.contains_key(id) || !holds_this_process(path, MAX_NESTING))
            .map(|((_, id), value)| (id, value))
            .collect();
        let (map, what) = (&mut self.map, self.what);
        self.entries.retain(|id, _| {
            let stays = found.contains_key(id);
            if !stays {
                // If the entry does not exist any more, the error has no consequence.
                let _ = map.remove(id);
            }
            stays
        });
        for (id, value) in found {
            if self.entries.get(&id) == Some(&value) {
                continue;
            }
            match map.insert(id, value, 0) {
                Ok(()) => {
                    self.entries.insert(id, value);
                }
                Err(error) => warn!("cannot list {what}: {error}"),
            }
        }
    }
}
