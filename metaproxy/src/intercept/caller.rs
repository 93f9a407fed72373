//! Who stands at the other end of an accepted connection.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use aya::maps::{HashMap, MapData, MapError};
use metaproxy_common::address::Endpoint;
use metaproxy_common::layout::{Caller, Flow, FlowKey};
use thiserror::Error;

use super::cgroups::{NotAPod, PodsCgroup};
use super::kernel;
use crate::pods::PodUid;

/// Why a connection's caller is not known. Such a connection is closed without an answer.
#[derive(Debug, Error)]
pub enum Unidentified {
    /// It was not made by a pod of this node, or its entry was taken before.
    #[error(
        "no pod filed this connection; it was dialled from outside the pods' cgroup, or its 4-tuple was used again"
    )]
    NoFlow,
    /// Two sockets claimed one 4-tuple.
    #[error(
        "two sockets claimed this connection's addresses and ports, so neither can be told from the other"
    )]
    Conflicted,
    /// The pods' cgroup is not there.
    #[error("the pods' cgroup does not exist at the moment")]
    NoPods,
    /// The caller is not a pod.
    #[error("the caller is no pod: {0}")]
    NotAPod(#[from] NotAPod),
    /// The client is gone, and with it what made the 4-tuple its own.
    #[error("the client closed the connection before it was accepted")]
    Closed,
    /// The map could not be read.
    #[error("cannot look up the caller: {0}")]
    Map(#[from] MapError),
}

impl Unidentified {
    /// Whether it is the node or the agent that fails here, and not the client.
    pub fn is_our_fault(&self) -> bool {
        matches!(self, Self::Map(_) | Self::NotAPod(NotAPod::Unreadable { .. }))
    }
}

/// Shared between the task that keeps the programs attached and those that identify.
pub type CurrentPods = Arc<RwLock<Option<Arc<PodsCgroup>>>>;

/// Looks up callers. Cheap to share.
#[derive(Debug)]
pub struct Callers {
    flows: Mutex<HashMap<MapData, FlowKey, Flow>>,
    pods: CurrentPods,
}

impl Callers {
    /// From the map that the programs fill, and the pods' cgroup as it stands.
    pub fn new(flows: HashMap<MapData, FlowKey, Flow>, pods: CurrentPods) -> Self {
        Self {
            flows: Mutex::new(flows),
            pods,
        }
    }

    /// The pod that made this connection. The entry is taken: a second connection from the same address and port
    /// must file its own.
    pub fn identify(
        &self,
        socket: &impl AsFd,
        peer: SocketAddr,
        listener: SocketAddr,
    ) -> Result<PodUid, Unidentified> {
        let key = FlowKey {
            client: Endpoint::from_socket(peer),
            listener: Endpoint::from_socket(listener),
        };
        // A client that is gone may have left its 4-tuple to another, which has filed itself in the meantime: then that
        // entry is not this connection's, and must not be taken. As long as the client is connected, no other socket's
        // connection with these addresses can have been accepted.
        let is_connected = || kernel::is_connected(socket.as_fd()).unwrap_or(false);
        if !is_connected() {
            return Err(Unidentified::Closed);
        }
        let caller = self.take(&key)?;
        if !is_connected() {
            return Err(Unidentified::Closed);
        }
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner).clone();
        let pods = pods.ok_or(Unidentified::NoPods)?;
        Ok(pods.pod_of(caller.cgroup_id)?)
    }

    /// Takes the entry of a connection that is refused whoever made it: it must not stand in the way of others.
    pub fn forget(&self, socket: &impl AsFd, peer: SocketAddr, listener: SocketAddr) {
        let key = FlowKey {
            client: Endpoint::from_socket(peer),
            listener: Endpoint::from_socket(listener),
        };
        if kernel::is_connected(socket.as_fd()).unwrap_or(false) {
            let _ = self.take(&key);
        }
    }

    /// Looking up and deleting are two calls (one call for both is Linux 5.14). Should another socket file itself in
    /// between, its entry is lost and it is refused: never taken for somebody else.
    fn take(&self, key: &FlowKey) -> Result<Caller, Unidentified> {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let flow = match flows.get(key, 0) {
            Ok(flow) => flow,
            Err(MapError::KeyNotFound) => return Err(Unidentified::NoFlow),
            Err(error) => return Err(error.into()),
        };
        if flow.conflicted != 0 {
            // Stays until its owner closes, so that whoever comes with the same 4-tuple is refused as well.
            return Err(Unidentified::Conflicted);
        }
        match flows.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(flow.caller),
            Err(error) => Err(error.into()),
        }
    }
}
