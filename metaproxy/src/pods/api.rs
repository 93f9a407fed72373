//! The API's objects (core/v1), with the fields that the agent uses only. While pods are listed, all pods of a node
//! are in memory at once, and most of their fields (`managedFields`, environments, volumes, conditions) are not
//! needed.

use std::borrow::Cow;
use std::collections::BTreeMap;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Deserializer};

use super::credential_variables::{CredentialVariable, deserialize_env};

/// `Pod`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodObject {
    /// `metadata`
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
    /// `spec`
    pub spec: Option<PodSpec>,
    /// `status`
    pub status: Option<PodStatus>,
}

/// `PodSpec`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// `nodeName`
    pub node_name: Option<String>,
    /// `serviceAccountName`
    pub service_account_name: Option<String>,
    /// `hostNetwork`: whether it shares the node's network namespace.
    pub host_network: Option<bool>,
    /// `containers`
    pub containers: Option<Vec<Container>>,
    /// `initContainers`, which include sidecars.
    pub init_containers: Option<Vec<Container>>,
}

/// `Container`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// `ports`
    pub ports: Option<Vec<ContainerPort>>,
    /// The variables of `env` that lead SDKs to other credentials.
    #[serde(deserialize_with = "deserialize_env")]
    pub env: Vec<CredentialVariable>,
}

/// `ContainerPort`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// `hostPort`, 1 to 65535
    pub host_port: Option<i32>,
    /// `hostIP`: the node's address. `None` or an unspecified address stands for all addresses.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    /// `protocol`: `TCP`, which is the default, `UDP` or `SCTP`
    pub protocol: Option<String>,
}

/// `PodStatus`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `phase`: `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`
    pub phase: Option<String>,
    /// `podIPs`, of both families.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    /// `startTime`: when a kubelet acknowledged the pod. It stays a text, because only its presence counts.
    pub start_time: Option<String>,
}

/// `PodIP`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// `ip`
    pub ip: Option<String>,
}

/// An object of which only the metadata is used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OnlyMetadata {
    /// `metadata`
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
}

/// Reads the used fields of `metadata`; `null` counts as empty.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    /// An owner reference. A reference without a required field is accepted, but does not match the owner of a mirror
    /// pod.
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Owner {
        api_version: String,
        kind: String,
        name: String,
        controller: Option<bool>,
    }
    impl From<Owner> for OwnerReference {
        fn from(owner: Owner) -> Self {
            Self {
                api_version: owner.api_version,
                kind: owner.kind,
                name: owner.name,
                controller: owner.controller,
                ..Self::default()
            }
        }
    }
    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Used {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        /// The version from which the watch continues.
        resource_version: Option<String>,
        #[serde(deserialize_with = "texts")]
        annotations: Option<BTreeMap<String, String>>,
        #[serde(deserialize_with = "texts")]
        labels: Option<BTreeMap<String, String>>,
        owner_references: Option<Vec<Owner>>,
    }
    let used = Option::<Used>::deserialize(deserializer)?.unwrap_or_default();
    Ok(ObjectMeta {
        name: used.name,
        namespace: used.namespace,
        uid: used.uid,
        resource_version: used.resource_version,
        annotations: used.annotations,
        labels: used.labels,
        owner_references: used
            .owner_references
            .map(|owners| owners.into_iter().map(Into::into).collect()),
        ..ObjectMeta::default()
    })
}

/// Reads annotations or labels. A value of `null` becomes empty, as in the API server (Go's `map[string]string`).
/// Manifests have such values if a template's value was not set.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let texts = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    Ok(texts.map(|texts| {
        let texts = texts.into_iter();
        texts.map(|(key, text)| (key, text.unwrap_or_default())).collect()
    }))
}

/// Objects of this type are requested as core/v1 Pods.
impl Resource for PodObject {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        v1::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        v1::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        v1::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        v1::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
