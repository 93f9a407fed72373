//! Identifies the client of an accepted connection. A program in the kernel has verified it in the handshake.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use aya::maps::{MapData, MapError, SkStorage};
use metaproxy_common::layout::{Arrival, ArrivalState};
use thiserror::Error;

use super::Client;
use super::refusals::RefusalKind;
use crate::cgroups::{CurrentPods, NotAPod, current};
use crate::pods::{Inventory, Known, PodUid, Pods};

/// Why the caller of a connection is not known. Such a connection is closed without an answer.
#[derive(Debug, Error)]
pub enum Unidentified {
    /// The packet that completed the handshake carried no option.
    #[error(
        "the connection carries no caller: it was not made from the pods' cgroup, or its packets lost the option on the way"
    )]
    NoOption,
    /// The option does not prove the caller.
    #[error(
        "the caller that the connection carries is not proven: its option was made for another connection, or by another agent"
    )]
    BadTag,
    /// The caller is proven, but NAT changed the connection's address to one that is not known to be the pod's.
    #[error(
        "the address {address} of the connection is not known to be one of pod {pod}: it was changed on the way by NAT outside the pod"
    )]
    ForeignAddress {
        /// The pod that has made the connection.
        pod: PodUid,
        /// The address that the listener sees.
        address: IpAddr,
    },
    /// The program that verifies callers has not seen the connection.
    #[error(
        "the program that verifies callers has not seen the connection: it is not attached to the agent's cgroup (any more)"
    )]
    Unverified,
    /// The connection is this process's own.
    #[error("the caller is this agent")]
    OwnAgent,
    /// The pods' cgroup does not exist.
    #[error("the pods' cgroup does not exist at the moment")]
    NoPods,
    /// The caller is not a pod.
    #[error("the caller is no pod: {0}")]
    NotAPod(#[from] NotAPod),
    /// The map could not be read.
    #[error("cannot look up the caller: {0}")]
    Map(#[from] MapError),
}

impl Unidentified {
    /// Returns the kind under which it is counted.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::NoOption => RefusalKind::NoOption,
            Self::BadTag => RefusalKind::BadTag,
            Self::ForeignAddress { .. } => RefusalKind::ForeignAddress,
            Self::NotAPod(NotAPod::Gone(_) | NotAPod::Elsewhere(_)) | Self::OwnAgent => RefusalKind::NotAPod,
            Self::NotAPod(NotAPod::Unreadable { .. }) | Self::Unverified | Self::NoPods | Self::Map(_) => {
                RefusalKind::Internal
            }
        }
    }

    /// Returns the pod, if it is known.
    pub fn pod(&self) -> Option<&PodUid> {
        match self {
            Self::ForeignAddress { pod, .. } => Some(pod),
            _ => None,
        }
    }
}

/// Reads the clients of accepted connections.
#[derive(Debug)]
pub struct Identifier {
    arrivals: SkStorage<MapData, Arrival>,
    own_cgroup: u64,
    cgroup: CurrentPods,
    pods: Pods,
}

impl Identifier {
    /// Takes the map that the program fills, the id of this process's cgroup, the pods' cgroup as it is at the
    /// moment, and the pods that are known.
    pub fn new(
        arrivals: SkStorage<MapData, Arrival>,
        own_cgroup: u64,
        cgroup: CurrentPods,
        pods: Pods,
    ) -> Self {
        Self {
            arrivals,
            own_cgroup,
            cgroup,
            pods,
        }
    }

    /// Returns the client that has made this connection; `peer` is its address as the listener sees it.
    ///
    /// # Errors
    /// Returns why the client cannot be identified. The connection must then be closed without an answer.
    pub fn identify(&self, socket: &impl AsRawFd, peer: IpAddr) -> Result<Client, Unidentified> {
        let uid = self.pod(socket, peer)?;
        Ok(Client { uid })
    }

    fn pod(&self, socket: &impl AsRawFd, peer: IpAddr) -> Result<PodUid, Unidentified> {
        let arrival = match self.arrivals.get(socket, 0) {
            Ok(arrival) => arrival,
            Err(MapError::KeyNotFound) => return Err(Unidentified::Unverified),
            Err(error) => return Err(error.into()),
        };
        let is_proven = matches!(
            arrival.state,
            ArrivalState::PROVEN | ArrivalState::PROVEN_BEHIND_NAT
        );
        if is_proven && arrival.cgroup_id == self.own_cgroup {
            return Err(Unidentified::OwnAgent);
        }
        match arrival.state {
            ArrivalState::PROVEN => self.pod_of(arrival.cgroup_id),
            ArrivalState::PROVEN_BEHIND_NAT => {
                let pod = self.pod_of(arrival.cgroup_id)?;
                let address = peer.to_canonical();
                if is_address_of(&self.pods.borrow(), &pod, address) {
                    Ok(pod)
                } else {
                    Err(Unidentified::ForeignAddress { pod, address })
                }
            }
            ArrivalState::NO_OPTION => Err(Unidentified::NoOption),
            ArrivalState::BAD_TAG => Err(Unidentified::BadTag),
            _ => Err(Unidentified::Unverified),
        }
    }

    fn pod_of(&self, cgroup_id: u64) -> Result<PodUid, Unidentified> {
        let pods = current(&self.cgroup).ok_or(Unidentified::NoPods)?;
        Ok(pods.pod_of(cgroup_id)?)
    }
}

/// Returns whether an address is known to be a pod's own. NAT inside the pod leads to such an address, and packets of
/// other pods do not have it. The address of a hostNetwork pod is the node's. NAT can also give it to packets of
/// other pods, so it proves nothing.
fn is_address_of(inventory: &Inventory, pod: &PodUid, address: IpAddr) -> bool {
    match inventory.by_uid(pod) {
        Some(Known::Pod(pod)) => !pod.host_network && pod.ips.contains(&address),
        Some(Known::Ambiguous(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pod;
    use std::sync::Arc;

    const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

    fn inventory(host_network: bool, ips: &[&str]) -> Inventory {
        let ips: Vec<_> = ips.iter().map(|ip| serde_json::json!({ "ip": ip })).collect();
        let pod = serde_json::json!({
            "metadata": { "name": "web", "namespace": "apps", "uid": UID },
            "spec": { "hostNetwork": host_network },
            "status": { "podIPs": ips },
        });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        Inventory::new([Arc::new(pod)], [], [])
    }

    #[rstest::rstest]
    #[case::its_own(inventory(false, &["10.244.0.5", "fd00::5"]), "10.244.0.5", true)]
    #[case::its_own_ipv6(inventory(false, &["10.244.0.5", "fd00::5"]), "fd00::5", true)]
    #[case::another(inventory(false, &["10.244.0.5"]), "10.244.0.6", false)]
    #[case::none_known(inventory(false, &[]), "10.244.0.5", false)]
    #[case::the_nodes(inventory(true, &["10.0.0.1"]), "10.0.0.1", false)]
    #[case::an_unknown_pod(Inventory::default(), "10.244.0.5", false)]
    fn behind_nat_a_pod_is_believed_at_its_known_addresses_only(
        #[case] inventory: Inventory,
        #[case] address: &str,
        #[case] is_believed: bool,
    ) {
        let uid: PodUid = UID.parse().unwrap();
        assert_eq!(
            is_address_of(&inventory, &uid, address.parse().unwrap()),
            is_believed
        );
    }
}
