//! Loads the guard's programs, and determines which of them this kernel can run.

use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;

use aya::include_bytes_aligned;
use aya::maps::{Array, MapData, PerCpuArray, SkStorage};
use clap::ValueEnum;
use metaproxy_common::address::Port;
use metaproxy_common::layout::{GuardConfig, GuardCounter};
use metaproxy_common::names;
use tracing::debug;

use super::GuardError;
use super::uplinks::Uplink;
use crate::intercept::link::{Hook, Link};
use crate::intercept::object::{BpfObject, CgroupLinks, ProgramsError};
use crate::intercept::programs::sum;

static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.o"));

/// The programs that refuse connections.
const CONNECT_PROGRAMS: [(&str, Hook); 2] =
    [(names::GUARD4, Hook::Connect4), (names::GUARD6, Hook::Connect6)];

/// The programs that refuse connections and drop packets at the pods' sockets.
const SOCKET_PROGRAMS: [(&str, Hook); 3] = [
    CONNECT_PROGRAMS[0],
    CONNECT_PROGRAMS[1],
    (names::GUARD_SKB, Hook::Egress),
];

/// The ways around the redirection that the guard closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GuardMode {
    /// As packets if the kernel has tcx (Linux 6.6 and later), else as connect
    Auto,
    /// Refuse connections, and drop packets of raw sockets, packet sockets (from Linux 6.6) and earlier connections
    Packets,
    /// Refuse connections only
    Connect,
    /// Stop nothing
    Off,
}

/// What a guard covers on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardLevel {
    /// It refuses connections, and drops packets at the uplinks' egress.
    Uplinks,
    /// It refuses connections, and drops packets at the pods' sockets.
    Sockets,
    /// It refuses connections.
    Connect,
}

impl GuardLevel {
    /// Returns the name of the level.
    pub fn label(self) -> &'static str {
        match self {
            Self::Uplinks => "packets",
            Self::Sockets => "packets of sockets",
            Self::Connect => "connect",
        }
    }
}

impl fmt::Display for GuardLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Uplinks => "pods' connections are refused, and their packets dropped at the uplinks",
            Self::Sockets => {
                "pods' connections are refused, and packets of their sockets dropped, but not those of packet sockets \
                 (AF_PACKET), which needs Linux 6.6"
            }
            Self::Connect => "pods' connections are refused, and nothing is done about raw sockets",
        })
    }
}

/// The loaded programs of the guard.
#[derive(Debug)]
pub struct GuardPrograms {
    object: BpfObject,
    level: GuardLevel,
    /// The names of the programs for packets with an Ethernet header, and for those that begin with the IP header.
    uplink: [&'static str; 2],
    counters: GuardCounters,
    /// The socket that marks the node's network namespace while it is open.
    _marker: Option<Marker>,
}

/// A socket to which no packet is sent, and the map with its mark.
struct Marker {
    socket: UdpSocket,
    _mark: SkStorage<MapData, u64>,
}

impl fmt::Debug for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socket.fmt(f)
    }
}

/// The counters of a guard. A clone is cheap and shares the map.
#[derive(Clone)]
pub struct GuardCounters(Arc<PerCpuArray<MapData, u64>>);

impl GuardCounters {
    /// Returns a counter, summed over the CPUs; 0 if it cannot be read.
    pub fn total(&self, counter: GuardCounter) -> u64 {
        sum(&self.0, counter as u32)
    }
}

impl fmt::Debug for GuardCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardCounters")
    }
}

impl GuardPrograms {
    /// Loads the programs of a mode that this kernel can run; `None` for [`GuardMode::Off`].
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn load(mode: GuardMode, node_netns: u64) -> Result<Option<Self>, GuardError> {
        if mode == GuardMode::Off {
            return Ok(None);
        }
        let mut object = BpfObject::new(OBJECT)?;
        for (name, _) in CONNECT_PROGRAMS {
            object.load(name)?;
        }
        let uplink = match mode {
            GuardMode::Auto | GuardMode::Packets => uplink_programs(&mut object)?,
            GuardMode::Connect | GuardMode::Off => None,
        };
        let level = match (uplink, mode) {
            (Some(_), _) => GuardLevel::Uplinks,
            (None, GuardMode::Packets) => GuardLevel::Sockets,
            (None, _) => GuardLevel::Connect,
        };
        let marker = match level {
            GuardLevel::Sockets => {
                object.load(names::GUARD_SKB)?;
                Some(mark_namespace(&mut object)?)
            }
            GuardLevel::Uplinks | GuardLevel::Connect => None,
        };
        let port = marker
            .as_ref()
            .map_or(Ok(0), |marker| {
                marker.socket.local_addr().map(|address| address.port())
            })
            .map_err(|error| GuardError::Marker(error.to_string()))?;
        let mut configs: Array<_, GuardConfig> = object.map(names::GUARD)?;
        configs
            .set(0, GuardConfig::imds(node_netns, Port::new(port)), 0)
            .map_err(|error| ProgramsError::Unfit(error.to_string()))?;
        let counters = GuardCounters(Arc::new(object.map(names::GUARD_COUNT)?));
        Ok(Some(Self {
            object,
            level,
            uplink: uplink.unwrap_or(["", ""]),
            counters,
            _marker: marker,
        }))
    }

    /// Returns what the guard covers.
    pub fn level(&self) -> GuardLevel {
        self.level
    }

    /// Returns the counters.
    pub fn counters(&self) -> GuardCounters {
        self.counters.clone()
    }

    /// Attaches the programs to the pods' cgroup.
    ///
    /// # Errors
    /// If the kernel refuses. Nothing is attached then.
    pub fn attach(&self, cgroup: &File) -> Result<CgroupLinks, ProgramsError> {
        let wanted = match self.level {
            GuardLevel::Sockets => &SOCKET_PROGRAMS[..],
            GuardLevel::Uplinks | GuardLevel::Connect => &CONNECT_PROGRAMS[..],
        };
        self.object.attach_all(wanted, cgroup)
    }

    /// Attaches programs again that another process has detached, and returns their names.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn reattach(
        &self,
        links: &mut CgroupLinks,
        cgroup: &File,
    ) -> Result<Vec<&'static str>, ProgramsError> {
        self.object.reattach(links, cgroup)
    }

    /// Attaches a program to the egress of an uplink.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn attach_to(&self, index: u32, uplink: &Uplink) -> Result<Link, ProgramsError> {
        let [ethernet, ip] = self.uplink;
        let name = if uplink.is_ethernet { ethernet } else { ip };
        self.object.attach_to_egress_of(name, index)
    }
}

/// Loads the programs for uplinks, and returns the names of those that this kernel accepts; `None` if it has no tcx.
fn uplink_programs(object: &mut BpfObject) -> Result<Option<[&'static str; 2]>, ProgramsError> {
    let mut load = |names: [&'static str; 2]| {
        for name in names {
            object.load(name)?;
        }
        Ok::<_, ProgramsError>(names)
    };
    let names = load([names::UPLINK_ETH, names::UPLINK_IP]).or_else(|error| {
        debug!("{error}; trying the programs for Linux 6.6");
        load([names::UPLINK_ETH_66, names::UPLINK_IP_66])
    })?;
    // No interface has this index. A kernel with tcx answers ENODEV, and one without EINVAL, because it does not know
    // the attach type.
    match object.attach_to_egress_of(names[0], i32::MAX as u32) {
        Err(ProgramsError::Attach { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {
            Ok(Some(names))
        }
        Err(ProgramsError::Attach { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    }
}

fn mark_namespace(object: &mut BpfObject) -> Result<Marker, GuardError> {
    let failed = |error: &dyn fmt::Display| GuardError::Marker(error.to_string());
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| failed(&error))?;
    let mut mark: SkStorage<_, u64> = object.map(names::GUARD_MARK)?;
    mark.insert(&socket, 1, 0).map_err(|error| failed(&error))?;
    Ok(Marker { socket, _mark: mark })
}
