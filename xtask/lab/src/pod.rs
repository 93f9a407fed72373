//! Pods: each has a cgroup as a kubelet makes it, a network namespace with a veth pair to the node, and a manifest.

use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns};

use super::Lab;
use super::netns::{Netns, ip};

/// The address families in which a pod has addresses and routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 and IPv6.
    Both,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// The description of a pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// `metadata.name`
    pub name: &'static str,
    /// `metadata.namespace`
    pub namespace: &'static str,
    /// Annotations of the pod.
    pub annotations: Vec<(String, String)>,
    /// Whether it shares the node's network namespace.
    pub host_network: bool,
    /// The address families in which it has addresses and routes.
    pub families: Families,
    /// The number of another pod, whose address it has instead of one of its own.
    pub same_address_as: Option<u32>,
    /// `status.podIPs` of the manifest, if they differ from its own addresses.
    pub reported_ips: Option<Vec<IpAddr>>,
    /// Whether it has a manifest.
    pub known: bool,
}

impl PodSpec {
    /// Describes a pod with a role.
    pub fn with_role(name: &'static str, role: &str) -> Self {
        let annotations = vec![("iam.amazonaws.com/role".to_owned(), role.to_owned())];
        Self {
            annotations,
            ..Self::without_role(name)
        }
    }

    /// Describes a pod without a role.
    pub fn without_role(name: &'static str) -> Self {
        Self {
            name,
            namespace: "apps",
            annotations: Vec::new(),
            host_network: false,
            families: Families::Both,
            same_address_as: None,
            reported_ips: None,
            known: true,
        }
    }
}

/// A pod: its cgroup and its network. Processes are started in it by [`Pod::command`].
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    uid: String,
    number: u32,
    netns: Option<Netns>,
    netns_file: File,
    node_netns: String,
    cgroup: PathBuf,
    manifests: PathBuf,
    _host_end: Option<HostEnd>,
}

/// The node's end of a pod's veth pair. It is deleted with the pod, because a remaining process of the pod may keep
/// the network namespace, and with it the pair.
#[derive(Debug)]
struct HostEnd {
    node: String,
    name: String,
}

impl Drop for HostEnd {
    fn drop(&mut self) {
        let _ = ip(&["-n", &self.node, "link", "delete", &self.name]);
    }
}

impl Pod {
    pub(super) fn new(lab: &Lab, spec: PodSpec, number: u32) -> Result<Self> {
        // Pods of different labs have different uids, because an agent searches the whole cgroup tree for pods that
        // are not below the pods' cgroup.
        let of_lab = format!("{:08x}{:04x}", std::process::id(), lab.number & 0xffff);
        let uid = format!("{number:08x}-1d6e-4b7a-9c55-{of_lab}");
        let class = ["", "burstable/", "besteffort/"][number as usize % 3];
        let cgroup = lab.kubepods().join(format!("{class}pod{uid}/c0ffee{number:04x}"));
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        let (netns, host_end) = if spec.host_network {
            (None, None)
        } else {
            let netns = Netns::new(&format!("{}-{}", lab.name, spec.name))?;
            let host_end = connect(lab, &netns, &spec, number)?;
            (Some(netns), Some(host_end))
        };
        let netns_file = netns.as_ref().map_or(lab.node(), |own| own).file().try_clone()?;
        let manifests = lab.manifests();
        let pod = Self {
            spec,
            uid,
            number,
            netns,
            netns_file,
            node_netns: lab.node().name().to_owned(),
            cgroup,
            manifests,
            _host_end: host_end,
        };
        if pod.spec.known {
            pod.write_manifest(&pod.spec.annotations)?;
        }
        Ok(pod)
    }

    /// Describes a pod of a cluster by its container's cgroup and the network namespace of its processes.
    pub fn of_cluster(name: &'static str, uid: &str, cgroup: PathBuf, netns: &Netns) -> Result<Self> {
        Ok(Self {
            spec: PodSpec::without_role(name),
            uid: uid.to_owned(),
            number: 0,
            netns: None,
            netns_file: netns.file().try_clone()?,
            node_netns: String::new(),
            cgroup,
            manifests: PathBuf::new(),
            _host_end: None,
        })
    }

    /// Returns `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Returns its number within the lab, which is part of its addresses.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns the cgroup of its container.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Returns its own network namespace, if it has one.
    pub fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// Returns the name of its node's network namespace.
    pub fn node_netns(&self) -> &str {
        &self.node_netns
    }

    /// Returns its IPv4 address.
    pub fn ip(&self) -> Ipv4Addr {
        address(self.number).0
    }

    /// Writes its manifest with these annotations.
    pub fn write_manifest(&self, annotations: &[(String, String)]) -> Result<()> {
        let (v4, v6) = address(self.spec.same_address_as.unwrap_or(self.number));
        let ips = match self.spec.families {
            Families::Both => vec![IpAddr::V4(v4), IpAddr::V6(v6)],
            Families::Ipv4 => vec![IpAddr::V4(v4)],
            Families::Ipv6 => vec![IpAddr::V6(v6)],
        };
        let ips = self.spec.reported_ips.as_ref().unwrap_or(&ips);
        let manifest = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.spec.name,
                "namespace": self.spec.namespace,
                "uid": self.uid,
                "annotations": annotations.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            },
            "spec": { "hostNetwork": self.spec.host_network, "containers": [] },
            "status": { "podIPs": ips.iter().map(|ip| serde_json::json!({ "ip": ip })).collect::<Vec<_>>() },
        });
        let (aside, path) = (
            self.manifests.join(format!(".{}.new", self.spec.name)),
            self.manifests.join(format!("{}.json", self.spec.name)),
        );
        fs::write(&aside, serde_json::to_vec_pretty(&manifest)?)?;
        fs::rename(&aside, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Prepares a command that runs in this pod.
    pub fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        command_in(program.as_ref(), Some(&self.cgroup), &self.netns_file)
    }
}

/// Prepares a command that runs in a network namespace and in a cgroup, or in this process's cgroup.
pub fn command_in(program: &Path, cgroup: Option<&Path>, netns: &File) -> Result<Command> {
    let mut command = Command::new(program);
    let procs = cgroup
        .map(|cgroup| {
            let path = cgroup.join("cgroup.procs");
            OpenOptions::new()
                .write(true)
                .open(&path)
                .with_context(|| format!("cannot open {}", path.display()))
        })
        .transpose()?;
    let netns = netns.try_clone()?;
    // SAFETY: between fork and exec only two system calls are made, on descriptors that were opened before.
    unsafe {
        command.pre_exec(move || {
            if let Some(procs) = &procs {
                // 0 is the writing process (cgroups(7)).
                if libc::write(procs.as_raw_fd(), b"0\n".as_ptr().cast(), 2) != 2 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        });
    }
    Ok(command)
}

fn address(number: u32) -> (Ipv4Addr, Ipv6Addr) {
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, number as u16, 0, 0, 0, 2);
    (Ipv4Addr::new(10, 244, number as u8, 2), v6)
}

/// Connects a pod by a veth pair with a subnet of its own. The node's end is the pod's gateway.
fn connect(lab: &Lab, netns: &Netns, spec: &PodSpec, number: u32) -> Result<HostEnd> {
    let (node, pod) = (lab.node().name(), netns.name());
    let host_end = format!("pod{number}");
    ip(&[
        "-n", node, "link", "add", &host_end, "type", "veth", "peer", "name", "eth0", "netns", pod,
    ])?;
    let connected = HostEnd {
        node: node.to_owned(),
        name: host_end.clone(),
    };
    ip(&["-n", node, "link", "set", &host_end, "up"])?;
    ip(&["-n", pod, "link", "set", "eth0", "up"])?;
    if let Some(other) = spec.same_address_as {
        // A new pod may get an address that an old pod still has. The node's route leads to one of the two pods, but
        // this pod can also send packets to the node.
        let (v4, _) = address(other);
        netns.add_address("eth0", &format!("{v4}/32"))?;
        ip(&["-n", pod, "route", "add", "default", "dev", "eth0"])?;
        lab.node()
            .sysctl(&format!("net/ipv4/conf/{host_end}/rp_filter"), "0")?;
        lab.node()
            .sysctl(&format!("net/ipv4/conf/{host_end}/proxy_arp"), "1")?;
        return Ok(connected);
    }
    if spec.families != Families::Ipv6 {
        lab.node()
            .add_address(&host_end, &format!("10.244.{number}.1/30"))?;
        netns.add_address("eth0", &format!("10.244.{number}.2/30"))?;
        ip(&[
            "-n",
            pod,
            "route",
            "add",
            "default",
            "via",
            &format!("10.244.{number}.1"),
        ])?;
    }
    if spec.families == Families::Ipv4 {
        return Ok(connected);
    }
    lab.node()
        .add_address(&host_end, &format!("fd00:244:0:{number:x}::1/64"))?;
    netns.add_address("eth0", &format!("fd00:244:0:{number:x}::2/64"))?;
    ip(&[
        "-n",
        pod,
        "-6",
        "route",
        "add",
        "default",
        "via",
        &format!("fd00:244:0:{number:x}::1"),
    ])?;
    Ok(connected)
}
