//! The API's pod (core/v1), as far as it is used. A whole one is larger by two orders of magnitude, and a node's are all in
//! memory at once while they are listed.

use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1;
use kube::Resource;
use kube::core::ObjectMeta;
use serde::Deserialize;

/// `Pod`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodObject {
    /// `metadata`
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
}

/// `ContainerPort`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerPort {
    /// 1 to 65535
    pub host_port: Option<i32>,
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
}

/// `PodIP`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// As text.
    pub ip: String,
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
