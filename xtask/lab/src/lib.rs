//! The lab: a node in miniature, on which metaproxy is tested, demonstrated and measured. Everything except AWS is
//! real: cgroups in the machine's cgroup v2 tree, network namespaces with veth pairs between them, routes and
//! forwarding as on a node. The cgroups, namespaces and directories of a lab have names that begin with the lab's
//! name, and are removed with the lab.
//!
//! ```text
//!   pod a ──veth── node ──veth── aws: 169.254.169.254, fd00:ec2::254 (metadata), 10.200.0.2 (STS, S3)
//!   pod b ──veth──┘
//! ```

pub mod agent;
pub mod apiserver;
pub mod bpf;
pub mod bpf_conflicts;
pub mod clients;
pub mod imds;
pub mod leftovers;
pub mod netns;
pub mod pod;
pub mod recorder;
mod remains;
mod slot;
pub mod sts;

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use self::bpf::Object;
use self::netns::{Netns, ip};
use self::pod::{Pod, PodSpec};
use self::remains::OwnedDir;
use self::slot::Slot;

/// The prefix of all names of labs, by which remains of a lab that was killed are found.
const PREFIX: &str = "mplab-";

/// The number of labs that this process has made.
static LABS: AtomicU32 = AtomicU32::new(0);

/// The address of STS and S3.
pub const AWS_IP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

/// The node's IPv4 address on its uplink.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// The node's IPv6 address on its uplink.
pub const NODE_IP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x200, 0, 0, 0, 0, 0, 1);

/// The metadata service's addresses.
pub const IMDS_IPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// A node, and AWS behind its uplink. Dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    name: String,
    number: u32,
    node: Netns,
    aws: Netns,
    files: Files,
    pods: AtomicU32,
    /// eBPF objects that were loaded before the lab was made.
    loaded_before: BTreeSet<Object>,
    _slot: Slot,
}

/// The lab's cgroups and directory.
#[derive(Debug)]
struct Files {
    cgroup: PathBuf,
    agents: PathBuf,
    dir: OwnedDir,
}

impl Drop for Files {
    fn drop(&mut self) {
        for cgroup in [&self.cgroup, &self.agents] {
            kill_all_in(cgroup);
            remove_cgroup(cgroup);
        }
    }
}

impl Lab {
    /// Makes a lab. Other labs may exist at the same time; waits while their number is at its limit.
    ///
    /// # Errors
    /// If this process is not root, no cgroup v2 is mounted, or a tool is missing.
    pub fn new() -> Result<Self> {
        require_root()?;
        Self::in_slot(Slot::any()?)
    }

    /// Makes a lab while no other lab exists. This is for tests that measure time or load, or change what labs share.
    ///
    /// # Errors
    /// The same as those of [`Self::new`].
    pub fn alone() -> Result<Self> {
        require_root()?;
        Self::in_slot(Slot::all()?)
    }

    fn in_slot(slot: Slot) -> Result<Self> {
        let number = LABS.fetch_add(1, Ordering::Relaxed) + 1;
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let dir = {
            let _lock = slot::lock("remains")?;
            remains::remove()?;
            OwnedDir::new(std::env::temp_dir().join(&name))?
        };
        // If a later step fails, the destructors of the values below remove what was made.
        let mount = cgroup2_mount()?;
        let files = Files {
            cgroup: mount.join(&name),
            agents: mount.join(format!("{name}-agents")),
            dir,
        };
        let cgroups = ["kubepods/burstable", "kubepods/besteffort", "host"];
        let dirs = cgroups.map(|name| files.cgroup.join(name));
        for path in dirs.iter().chain([&files.agents, &files.dir.path().join("pods")]) {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        // Before Linux 5.14 an agent accepts only the initial network namespace as the node's.
        let node = match std::env::var_os("METAPROXY_LAB_NODE") {
            Some(existing) => Netns::named(&existing.to_string_lossy())?,
            None => Netns::new(&format!("{name}-node"))?,
        };
        let aws = Netns::new(&format!("{name}-aws"))?;
        connect_uplink(&node, &aws)?;
        Ok(Self {
            name,
            number,
            node,
            aws,
            files,
            pods: AtomicU32::new(0),
            loaded_before: bpf::loaded()?,
            _slot: slot,
        })
    }

    /// Returns the node's network namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// Returns the network namespace of the metadata service, STS and S3.
    pub fn aws(&self) -> &Netns {
        &self.aws
    }

    /// Returns the prefix of all names of this lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the cgroup of the pods and of the node's own processes.
    pub fn cgroup(&self) -> PathBuf {
        self.files.cgroup.clone()
    }

    /// Returns the pods' cgroup.
    pub fn kubepods(&self) -> PathBuf {
        self.files.cgroup.join("kubepods")
    }

    /// Returns the cgroup of the node's own processes, outside the pods'.
    pub fn host_cgroup(&self) -> PathBuf {
        self.files.cgroup.join("host")
    }

    /// Returns the cgroup of agents and guards, which is their own, as containers and services of a node have one. It
    /// is not below [`Self::cgroup`], so that programs which a test attaches there do not see agents.
    pub fn agent_cgroup(&self) -> PathBuf {
        self.files.agents.clone()
    }

    /// Lists all processes of the lab: agents, guards, and what runs in pods and on the node.
    pub fn processes(&self) -> Vec<u32> {
        let cgroups = [&self.files.cgroup, &self.files.agents];
        let processes = cgroups.into_iter().flat_map(|cgroup| processes_in(cgroup));
        processes.filter_map(|pid| u32::try_from(pid).ok()).collect()
    }

    /// Returns the directory for files of this lab.
    pub fn dir(&self) -> &Path {
        self.files.dir.path()
    }

    /// Returns the runtime directory that agents and guards of this node share.
    pub fn runtime_dir(&self) -> PathBuf {
        self.files.dir.path().join("run")
    }

    /// Returns the directory of the manifests.
    pub fn manifests(&self) -> PathBuf {
        self.files.dir.path().join("pods")
    }

    /// Makes a pod: its cgroup, its network namespace and, if it is known, its manifest.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        Pod::new(self, spec, number)
    }

    /// Writes a manifest under another name and renames it, so that no reader sees half of it.
    pub fn manifest(&self, file: &str, text: &str) -> Result<()> {
        let path = self.manifests().join(file);
        let aside = self.manifests().join(format!(".{file}.new"));
        fs::write(&aside, text)?;
        fs::rename(&aside, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Connects node and AWS by an IPv4 and an IPv6 subnet, and adds routes for what lies behind each.
fn connect_uplink(node: &Netns, aws: &Netns) -> Result<()> {
    ip(&[
        "-n",
        node.name(),
        "link",
        "add",
        "up0",
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        aws.name(),
    ])?;
    for (netns, device, v4, v6) in [
        (node, "up0", "10.200.0.1/24", "fd00:200::1/64"),
        (aws, "eth0", "10.200.0.2/24", "fd00:200::2/64"),
    ] {
        netns.add_address(device, v4)?;
        netns.add_address(device, v6)?;
        ip(&["-n", netns.name(), "link", "set", device, "up"])?;
    }
    for address in IMDS_IPS {
        aws.add_address("lo", &address.to_string())?;
    }
    ip(&[
        "-n",
        node.name(),
        "route",
        "add",
        "169.254.169.254",
        "via",
        "10.200.0.2",
    ])?;
    ip(&[
        "-n",
        node.name(),
        "-6",
        "route",
        "add",
        "fd00:ec2::254",
        "via",
        "fd00:200::2",
    ])?;
    ip(&["-n", aws.name(), "route", "add", "default", "via", "10.200.0.1"])?;
    ip(&[
        "-n",
        aws.name(),
        "-6",
        "route",
        "add",
        "default",
        "via",
        "fd00:200::1",
    ])?;
    node.sysctl("net/ipv4/ip_forward", "1")?;
    node.sysctl("net/ipv6/conf/all/forwarding", "1")
}

/// Checks for root, which network namespaces, cgroups and eBPF need.
///
/// # Errors
/// If this process is not root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root (network namespaces, cgroups and eBPF): run it with sudo");
    }
    Ok(())
}

/// Returns the machine's cgroup v2 mount.
///
/// # Errors
/// If there is none.
pub fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read the mounts")?;
    mounts
        .lines()
        .find_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            (fields.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(fields[1]))
        })
        .context("no cgroup v2 is mounted on this machine; `mount -t cgroup2 none /sys/fs/cgroup/unified` mounts it")
}

/// Ends every process in a cgroup and in those below it, and waits until they are gone.
pub fn kill_all_in(cgroup: &Path) {
    for _ in 0..200 {
        let processes = processes_in(cgroup);
        if processes.is_empty() {
            return;
        }
        for pid in processes {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn processes_in(cgroup: &Path) -> Vec<i32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut processes: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for child in subdirectories(cgroup) {
        processes.extend(processes_in(&child));
    }
    processes
}

/// Removes a cgroup and those below it, except those that still have processes.
pub fn remove_cgroup(cgroup: &Path) {
    for child in subdirectories(cgroup) {
        remove_cgroup(&child);
    }
    // A process that has just ended leaves its cgroup a moment later.
    for _ in 0..100 {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            _ => return,
        }
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let directories = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| entry.path()).collect()
}
