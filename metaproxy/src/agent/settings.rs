//! The settings that the command line gives an agent.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::ValueEnum;
use metaproxy_common::verdict::Family;

use super::PodSource;
use crate::cgroups::{CgroupError, Locator};
use crate::credentials::sts::StsSettings;
use crate::identify::Limits;
use crate::imds::ImdsV1Policy;
use crate::imds::path::Paths;
use crate::imds::upstream::Endpoint;
use crate::intercept::guard::GuardMode;
use crate::intercept::listener::node_addresses;
use crate::roles::Rules;

/// What pods get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Pods get their own roles, and nothing else of the node's credentials
    Enforce,
    /// Pods reach the node's metadata service as without metaproxy, and the agent logs what enforce would change
    Observe,
    /// No roles are served; pods are only kept from the node's credentials
    Firewall,
}

impl Mode {
    /// Returns the value of the flag.
    pub fn label(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
            Self::Firewall => "firewall",
        }
    }
}

/// All settings of an agent that the command line gives.
#[derive(Debug)]
pub struct Settings {
    /// The source of the node's pods.
    pub pods: PodSource,
    /// The mode, which decides what pods get.
    pub mode: Mode,
    /// The guard, which keeps pods from the node's metadata service if a connection is not redirected.
    pub guard: GuardMode,
    /// The pods' cgroup, or `None` if it has to be found.
    pub cgroup: Option<PathBuf>,
    /// The cgroup2 mount, or `None` if it has to be found.
    pub cgroup_root: Option<PathBuf>,
    /// The addresses of the listeners. Empty means the node's addresses.
    pub listen_addresses: Vec<IpAddr>,
    /// The port of the listeners. 0 means a free port.
    pub listen_port: u16,
    /// The assumed family of the pods' addresses while no address is known.
    pub pod_family: Family,
    /// The rules that decide about roles.
    pub rules: Rules,
    /// Whether the agent requests tokens of service accounts only while a policy limits their audience.
    pub token_policy_required: bool,
    /// The settings of the STS client.
    pub sts: StsSettings,
    /// The node's metadata service.
    pub imds: Endpoint,
    /// The paths of the node's metadata that pods may read.
    pub paths: Paths,
    /// Whether requests without a session token are answered.
    pub imds_v1: ImdsV1Policy,
    /// The limits that apply to each pod.
    pub limits: Limits,
    /// The address and port of the admin server, in addition to its socket. `None` means no port.
    pub admin: Option<SocketAddr>,
    /// The directory of the token key, the snapshot of the pods and the admin socket.
    pub runtime_dir: PathBuf,
}

impl Settings {
    /// Makes the locator of the pods' cgroup.
    ///
    /// # Errors
    /// If there is no cgroup2 mount, or the given directory is not one.
    pub(super) fn locator(&self) -> Result<Locator, CgroupError> {
        Locator::new(self.cgroup_root.as_deref(), self.cgroup.as_deref())
    }

    /// Returns the addresses to listen on.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        if self.listen_addresses.is_empty() {
            node_addresses()
        } else {
            self.listen_addresses.clone()
        }
    }
}
