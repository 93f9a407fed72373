//! The pods, namespaces and service accounts of the API, reduced to the fields that the agent uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use kube::core::ObjectMeta;
use metaproxy_common::verdict::Family;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::annotations::retain_relevant;
use super::api::{ContainerPort, PodObject};
use super::credential_variables::CredentialVariable;
use super::{Mirror, PodUid};

/// The annotations of an object.
pub type Annotations = BTreeMap<String, String>;

/// Returns an annotation's value; `None` if it is blank.
fn non_blank<'a>(annotations: &'a Annotations, key: &str) -> Option<&'a str> {
    annotations
        .get(key)
        .map(|value| value.trim())
        .filter(|value| !value.is_empty())
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// `metadata.uid`
    pub uid: PodUid,
    /// Whether it is the copy of a static pod in the API.
    pub mirror: Mirror,
    /// `metadata.namespace`, or `default`.
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.serviceAccountName`, or `default`.
    pub service_account: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
    /// The labels that were probably meant to be annotations.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub labels: Annotations,
    /// The variables of its containers with which SDKs use other credentials than those of the metadata service.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub other_credentials: BTreeSet<CredentialVariable>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// `status.podIPs`, which may not be known yet.
    pub ips: Vec<IpAddr>,
    /// The TCP host ports of its containers.
    pub host_ports: Vec<HostPort>,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// Whether all its containers have ended, and none will be started again.
    pub finished: bool,
    /// Whether, according to `status.phase`, a container has been started and not all have ended.
    #[serde(default)]
    pub running: bool,
}

/// A TCP port of the node from which connections are sent to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `hostPort`, 1 to 65535
    pub port: u16,
    /// `hostIP`. `None` stands for every address of the node, and an unspecified one for every address of its family.
    pub ip: Option<IpAddr>,
}

impl HostPort {
    /// Converts a container's port; `None` if it does not request a TCP port of the node.
    fn from_api(port: &ContainerPort) -> Option<Self> {
        let is_tcp = !matches!(port.protocol.as_deref(), Some("UDP" | "SCTP"));
        let number = u16::try_from(port.host_port?)
            .ok()
            .filter(|number| *number != 0)?;
        is_tcp.then_some(Self {
            port: number,
            // An address that cannot be parsed counts as every address, because a claim must not be missed.
            ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
        })
    }

    /// Reports whether this host port covers an address and port of the node.
    pub fn covers(&self, address: SocketAddr) -> bool {
        let node = address.ip().to_canonical();
        let is_covered = match self.ip.map(|ip| ip.to_canonical()) {
            None => true,
            Some(ip) if ip.is_unspecified() => ip.is_ipv4() == node.is_ipv4(),
            Some(ip) => ip == node,
        };
        is_covered && self.port == address.port()
    }
}

/// The reasons why an object cannot be used. Other objects are not affected.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ObjectError {
    /// It has no name.
    #[error("{0} without metadata.name")]
    NoName(&'static str),
    /// It is a pod without a UID.
    #[error(
        "pod {namespace}/{name} has no metadata.uid, by which its processes are known; it is not served. `kubectl get \
         pod -o yaml` shows the UID"
    )]
    NoUid {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
    },
    /// It is a pod with a UID that cannot be in the name of a cgroup.
    #[error("pod {namespace}/{name}: metadata.uid {error}; it is not served")]
    BadUid {
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// The error of the UID.
        error: super::InvalidUid,
    },
}

impl Pod {
    /// Converts the API's object.
    ///
    /// # Errors
    /// If it has no name or no usable UID.
    pub fn from_api(pod: PodObject) -> Result<Self, ObjectError> {
        let (namespace, name) = namespace_and_name("pod", &pod.metadata)?;
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let mirror = Mirror::of(&pod.metadata, &spec, &status);
        let Some(uid) = pod.metadata.uid.filter(|uid| !uid.is_empty()) else {
            return Err(ObjectError::NoUid { namespace, name });
        };
        let uid = match uid.parse() {
            Ok(uid) => uid,
            Err(error) => {
                return Err(ObjectError::BadUid {
                    namespace,
                    name,
                    error,
                });
            }
        };
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ips = status.pod_ips.unwrap_or_default();
        let containers = || {
            [&spec.containers, &spec.init_containers]
                .into_iter()
                .flatten()
                .flatten()
        };
        let host_ports = containers()
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(HostPort::from_api)
            .collect();
        let other_credentials = containers()
            .flat_map(|container| container.env.iter().copied())
            .collect();
        let labels = pod.metadata.labels.unwrap_or_default();
        Ok(Self {
            mirror,
            uid,
            namespace,
            name,
            service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
            annotations,
            labels: retain_relevant(labels, &[]),
            other_credentials,
            host_network: spec.host_network.unwrap_or_default(),
            ips: ips.into_iter().filter_map(|ip| ip.ip?.parse().ok()).collect(),
            host_ports,
            node: spec.node_name,
            finished,
            running: status.phase.as_deref() == Some("Running"),
        })
    }

    /// Returns the UID in the path of the pod's cgroup: the hash for a static pod, `metadata.uid` for others.
    pub fn cgroup_uid(&self) -> &PodUid {
        match &self.mirror {
            Mirror::Confirmed(hash) => hash,
            Mirror::No | Mirror::Claimed => &self.uid,
        }
    }

    /// Returns the family of its first address; `None` if it has no network of its own or no address (yet).
    pub fn family(&self) -> Option<Family> {
        let first = self.ips.first().filter(|_| !self.host_network)?;
        Some(family_of(first))
    }

    /// Reports whether it has an address of this family.
    pub fn has_address_of(&self, family: Family) -> bool {
        self.ips.iter().any(|ip| family_of(ip) == family)
    }

    /// Returns an annotation's value; `None` if it is blank.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        non_blank(&self.annotations, key)
    }
}

fn family_of(ip: &IpAddr) -> Family {
    if ip.to_canonical().is_ipv4() {
        Family::V4
    } else {
        Family::V6
    }
}

impl fmt::Display for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn namespace_and_name(kind: &'static str, metadata: &ObjectMeta) -> Result<(String, String), ObjectError> {
    let name = metadata.name.clone().ok_or(ObjectError::NoName(kind))?;
    Ok((
        metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
        name,
    ))
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// `metadata.name`
    pub name: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
}

impl Namespace {
    /// Converts the metadata of the API's object.
    ///
    /// # Errors
    /// If it has no name.
    pub fn from_api(metadata: ObjectMeta) -> Result<Self, ObjectError> {
        let (_, name) = namespace_and_name("namespace", &metadata)?;
        Ok(Self {
            name,
            annotations: metadata.annotations.unwrap_or_default(),
        })
    }
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccount {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.annotations`
    pub annotations: Annotations,
}

impl ServiceAccount {
    /// Converts the metadata of the API's object.
    ///
    /// # Errors
    /// If it has no name.
    pub fn from_api(metadata: ObjectMeta) -> Result<Self, ObjectError> {
        let (namespace, name) = namespace_and_name("service account", &metadata)?;
        Ok(Self {
            namespace,
            name,
            annotations: metadata.annotations.unwrap_or_default(),
        })
    }

    /// Returns an annotation's value; `None` if it is blank.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        non_blank(&self.annotations, key)
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
