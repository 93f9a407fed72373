//! The API's objects (core/v1), as far as they are used: a node's pods are all in memory at once while they are listed, and
//! most of what they say (`managedFields`, environments, volumes, conditions) is nobody's business here.

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
    /// Where it runs.
    pub node_name: Option<String>,
    /// As which it runs.
    pub service_account_name: Option<String>,
    /// Whether it shares the node's network namespace.
    pub host_network: Option<bool>,
    /// In the order of the manifest.
    pub containers: Option<Vec<Container>>,
    /// Those that run first; sidecars among them.
    pub init_containers: Option<Vec<Container>>,
}

/// `Container`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Container {
    /// `ports`
    pub ports: Option<Vec<ContainerPort>>,
    /// Of `env`, what is used.
    #[serde(deserialize_with = "deserialize_env")]
    pub env: Vec<CredentialVariable>,
}

/// `ContainerPort`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// 1 to 65535
    pub host_port: Option<i32>,
    /// The node's address that it is for; none or an unspecified one for all.
    #[serde(rename = "hostIP")]
    pub host_ip: Option<String>,
    /// `TCP`, which none means too, `UDP` or `SCTP`
    pub protocol: Option<String>,
}

/// `PodStatus`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`
    pub phase: Option<String>,
    /// Of both families.
    #[serde(rename = "podIPs")]
    pub pod_ips: Option<Vec<PodIp>>,
    /// When a kubelet acknowledged the pod; as text, since only its presence counts.
    pub start_time: Option<String>,
}

/// `PodIP`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// As text.
    pub ip: Option<String>,
}

/// An object of which nothing else counts.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct OnlyMetadata {
    /// `metadata`
    #[serde(deserialize_with = "metadata")]
    pub metadata: ObjectMeta,
}

/// What is used of `metadata`; one that is null is as good as none.
fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    /// One that lacks what every owner has is read as one that is none of a mirror pod.
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
        /// For the watch to go on from.
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

/// Annotations or labels. One that is null is empty, as in the API server (Go's `map[string]string`): manifests have it where a
/// template's value was not set.
fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    let texts = Option::<BTreeMap<String, Option<String>>>::deserialize(deserializer)?;
    Ok(texts.map(|texts| {
        let texts = texts.into_iter();
        texts.map(|(key, text)| (key, text.unwrap_or_default())).collect()
    }))
}

/// Asked for as what it is a part of.
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
