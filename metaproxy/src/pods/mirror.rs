//! Recognizes mirror pods, the API's copies of static pods, which have the annotations of static pods.
//!
//! The kubelet names a static pod's cgroup after the hash of its manifest, and creates a pod in the API that has this
//! hash in two annotations. Users with the right to create pods can write the same annotations. The annotations
//! therefore count only together with a status, which such users cannot write: the API server drops the status of a
//! pod that is created, its built-in roles for users do not include `pods/status`, and a kubelet that has no static
//! pod for a mirror pod deletes it and writes no status. See `CreateMirrorPod` and `deleteOrphanedMirrorPods`
//! (kubernetes/pkg/kubelet), and `podStrategy.PrepareForCreate` (pkg/registry/core/pod). `ValidatePodUpdate`
//! (pkg/apis/core/validation) lets no update add or change the mirror annotation.

use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::PodUid;
use super::api::{PodSpec, PodStatus};

/// The annotation with the kubelet's hash of a static pod's manifest. The hash has 32 hexadecimal digits, and the
/// kubelet names the pod's cgroup after it.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// The annotation that makes a pod a mirror pod. The kubelet writes the hash to it too.
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// Whether a pod is a mirror pod, and of which static pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mirror {
    /// It is an ordinary pod.
    No,
    /// Its annotations claim that it is a mirror pod, but the kubelet has not confirmed that (yet).
    Claimed,
    /// The kubelet has confirmed it. The value is the UID in the path of the static pod's cgroup.
    Confirmed(PodUid),
}

impl Mirror {
    /// Determines it from the fields of the API's object.
    pub(super) fn of(metadata: &ObjectMeta, spec: &PodSpec, status: &PodStatus) -> Self {
        let annotation = |key| metadata.annotations.as_ref()?.get(key);
        let Some(mirrored) = annotation(CONFIG_MIRROR) else {
            return Self::No;
        };
        let hash = annotation(CONFIG_HASH).filter(|hash| *hash == mirrored && is_hash(hash));
        let is_confirmed = is_owned_by_its_node(metadata, spec) && has_status_of_kubelet(status);
        match hash.and_then(|hash| hash.parse().ok()) {
            Some(uid) if is_confirmed => Self::Confirmed(uid),
            _ => Self::Claimed,
        }
    }
}

fn is_hash(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reports whether the pod's node owns it. The kubelet makes its node the owner of each mirror pod, and
/// NodeRestriction does not let it create any other pod.
fn is_owned_by_its_node(metadata: &ObjectMeta, spec: &PodSpec) -> bool {
    let Some(node) = &spec.node_name else {
        return false;
    };
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    owners.iter().any(|owner| {
        owner.kind == "Node"
            && owner.api_version == "v1"
            && owner.controller == Some(true)
            && owner.name == *node
    })
}

/// Reports whether a kubelet has acknowledged the pod. The kubelet sets `startTime` then. Other writers of a status
/// (the scheduler, the node controller, the collector of dead pods) do not set it.
fn has_status_of_kubelet(status: &PodStatus) -> bool {
    status.start_time.as_ref().is_some_and(|time| !time.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::Pod;
    use super::*;
    use rstest::rstest;
    use serde_json::{Value, json};

    const HASH: &str = "0123456789abcdef0123456789abcdef";

    /// Makes a mirror pod as a kubelet does.
    fn genuine() -> Value {
        json!({
            "metadata": {
                "name": "etcd-n1", "namespace": "kube-system", "uid": "u",
                "annotations": { CONFIG_HASH: HASH, CONFIG_MIRROR: HASH, "kubernetes.io/config.source": "file" },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n", "controller": true },
                ],
            },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": { "phase": "Pending", "startTime": "2026-01-01T00:00:00Z" },
        })
    }

    fn read(pod: Value) -> Mirror {
        Pod::from_api(serde_json::from_value(pod).unwrap())
            .unwrap()
            .mirror
    }

    #[test]
    fn the_mirror_pod_of_a_kubelet_is_confirmed() {
        assert_eq!(read(genuine()), Mirror::Confirmed(HASH.parse().unwrap()));
    }

    #[rstest]
    #[case::no_status("/status", Value::Null)]
    #[case::no_status_of_a_kubelet("/status/startTime", Value::Null)]
    #[case::an_empty_time("/status/startTime", json!(""))]
    #[case::no_owner("/metadata/ownerReferences", Value::Null)]
    #[case::another_owner("/metadata/ownerReferences/0/kind", json!("ReplicaSet"))]
    #[case::another_api("/metadata/ownerReferences/0/apiVersion", json!("example.com/v1"))]
    #[case::another_node("/metadata/ownerReferences/0/name", json!("n2"))]
    #[case::no_controller("/metadata/ownerReferences/0/controller", json!(false))]
    #[case::no_node("/spec/nodeName", Value::Null)]
    #[case::no_hash("/metadata/annotations/kubernetes.io~1config.hash", Value::Null)]
    #[case::another_hash("/metadata/annotations/kubernetes.io~1config.hash", json!("f".repeat(32)))]
    #[case::no_hash_at_all("/metadata/annotations/kubernetes.io~1config.mirror", json!("x"))]
    fn a_claim_without_any_part_of_the_kubelets_confirmation_is_only_a_claim(
        #[case] at: &str,
        #[case] value: Value,
    ) {
        let mut pod = genuine();
        let (parent, last) = at.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/");
        let object = pod.pointer_mut(parent).unwrap().as_object_mut().unwrap();
        if value.is_null() {
            object.remove(&last);
        } else {
            object.insert(last, value);
        }
        assert_eq!(read(pod), Mirror::Claimed, "{at}");
    }

    #[test]
    fn a_uid_instead_of_the_hash_is_not_confirmed() {
        let uid = "aaaaaaaa-0000-0000-0000-000000000001";
        let mut pod = genuine();
        pod["metadata"]["annotations"] = json!({ CONFIG_HASH: uid, CONFIG_MIRROR: uid });
        assert_eq!(read(pod), Mirror::Claimed);
    }

    #[test]
    fn a_hash_alone_makes_no_mirror_pod() {
        let mut pod = genuine();
        pod["metadata"]["annotations"] = json!({ CONFIG_HASH: HASH });
        assert_eq!(read(pod), Mirror::No);
    }
}
