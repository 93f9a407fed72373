//! A node in miniature. Everything is real but AWS: cgroups in the machine's cgroup v2 tree, network namespaces with
//! veth pairs between them, routes and forwarding as on a node. Everything is named after the lab and goes with it.
//!
//! ```text
//!   pod a ──veth── node ──veth── aws: 169.254.169.254, fd00:ec2::254 (metadata), 10.200.0.2 (STS, S3)
//!   pod b ──veth──┘
//! ```

pub mod agent;
pub mod apiserver;
pub mod bpf;
pub mod foreign;
pub mod imds;
pub mod leftovers;
pub mod netns;
pub mod pod;
pub mod recorder;
pub mod sts;

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use self::netns::{Netns, ip};
use self::pod::{Pod, PodSpec};

/// What every name of a lab begins with, so that remains of one that was killed can be told and removed.
const PREFIX: &str = "mplab-";

/// Where STS and S3 are.
pub const AWS_IP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 2);

/// The node's addresses on its uplink.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);
/// The node's IPv6 address.
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
    node: Netns,
    aws: Netns,
    files: Files,
    pods: AtomicU32,
    _turn: File,
}

/// The lab's cgroup and directory.
#[derive(Debug)]
struct Files {
    cgroup: PathBuf,
    dir: PathBuf,
}

impl Drop for Files {
    fn drop(&mut self) {
        kill_all_in(&self.cgroup);
        remove_cgroup(&self.cgroup);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl Lab {
    /// Sets one up; waits for its turn where another test has one.
    ///
    /// # Errors
    /// Where this is not root, or no cgroup v2 is mounted, or a tool is missing.
    pub fn new() -> Result<Self> {
        require_root()?;
        let turn = take_turn()?;
        remove_remains()?;
        let name = format!("{PREFIX}{}", std::process::id());
        // From here on whatever fails is cleaned up after.
        let files = Files {
            cgroup: cgroup2_mount()?.join(&name),
            dir: std::env::temp_dir().join(&name),
        };
        for path in ["kubepods/burstable", "kubepods/besteffort", "host", "agent"]
            .map(|name| files.cgroup.join(name))
            .iter()
            .chain([&files.dir.join("pods")])
        {
            fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        // Before Linux 5.14 an agent knows no node's namespace but the initial one.
        let node = match std::env::var_os("METAPROXY_LAB_NODE") {
            Some(existing) => Netns::named(&existing.to_string_lossy())?,
            None => Netns::new(&format!("{name}-node"))?,
        };
        let aws = Netns::new(&format!("{name}-aws"))?;
        connect_uplink(&node, &aws)?;
        Ok(Self {
            name,
            node,
            aws,
            files,
            pods: AtomicU32::new(0),
            _turn: turn,
        })
    }

    /// The node's network namespace.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// The network namespace of the metadata service, STS and S3.
    pub fn aws(&self) -> &Netns {
        &self.aws
    }

    /// What every name of this lab begins with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The lab's part of the cgroup tree.
    pub fn cgroup(&self) -> PathBuf {
        self.files.cgroup.clone()
    }

    /// The pods' cgroup.
    pub fn kubepods(&self) -> PathBuf {
        self.files.cgroup.join("kubepods")
    }

    /// A cgroup outside the pods'.
    pub fn host_cgroup(&self) -> PathBuf {
        self.files.cgroup.join("host")
    }

    /// A cgroup for an agent alone, as a container and a service of the node have one.
    pub fn agent_cgroup(&self) -> PathBuf {
        self.files.cgroup.join("agent")
    }

    /// A directory for files of this lab.
    pub fn dir(&self) -> &Path {
        &self.files.dir
    }

    /// What agents and guards of this node share.
    pub fn runtime_dir(&self) -> PathBuf {
        self.files.dir.join("run")
    }

    /// The manifests.
    pub fn manifests(&self) -> PathBuf {
        self.files.dir.join("pods")
    }

    /// A pod: its cgroup, its network namespace and, with a UID, its manifest.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        Pod::new(self, spec, number)
    }

    /// Writes a manifest whole, as an editor does: under another name first.
    pub fn manifest(&self, file: &str, text: &str) -> Result<()> {
        let path = self.manifests().join(file);
        let aside = self.manifests().join(format!(".{file}.new"));
        fs::write(&aside, text)?;
        fs::rename(&aside, &path).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// One IPv4 and one IPv6 subnet between node and AWS, and routes for what lies behind each.
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

/// Needed for network namespaces, cgroups and eBPF.
///
/// # Errors
/// Where this is not root.
pub fn require_root() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("this needs root (network namespaces, cgroups and eBPF): run it with sudo");
    }
    Ok(())
}

/// Labs share the machine's list of eBPF programs, in which leftovers are looked for: one at a time.
fn take_turn() -> Result<File> {
    let path = std::env::temp_dir().join("metaproxy-lab.lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    file.lock().context("cannot wait for other labs")?;
    Ok(file)
}

/// The machine's cgroup v2 mount.
///
/// # Errors
/// Where there is none.
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

/// Removes what a lab left that was killed before it could clean up.
fn remove_remains() -> Result<()> {
    let remains = |dir: &Path| -> Vec<PathBuf> {
        let entries =
            fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()));
        entries.map_or_else(
            |_| Vec::new(),
            |entries| {
                entries
                    .filter(|path| {
                        path.file_name()
                            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
                    })
                    .collect()
            },
        )
    };
    for cgroup in remains(&cgroup2_mount()?) {
        kill_all_in(&cgroup);
        remove_cgroup(&cgroup);
    }
    for netns in remains(Path::new("/run/netns")) {
        if let Some(name) = netns.file_name().and_then(|name| name.to_str()) {
            let deleted = ip(&["netns", "delete", name]);
            // The lab that made it may have been about to delete it.
            if Path::new("/run/netns").join(name).exists() {
                deleted?;
            }
        }
    }
    for dir in remains(&std::env::temp_dir()) {
        let _ = fs::remove_dir_all(dir);
    }
    Ok(())
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

/// Removes a cgroup and those below it. Those that still have processes stay.
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
