//! Helpers for networks within a pod, and for packet filter rules.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use metaproxy_lab::netns::{Netns, ip};
use metaproxy_lab::pod::{Pod, command_in};

use super::{Node, Outcomes, client_binary, outcomes};

/// The nested namespace's address, as docker assigns it.
const NESTED_IP: &str = "172.17.0.2";

/// A network within a pod, as docker-in-docker makes it: a network namespace behind a bridge, and a nested cgroup.
pub struct Nested<'a> {
    pod: &'a Pod,
    netns: Netns,
    cgroup: PathBuf,
}

impl<'a> Nested<'a> {
    /// Makes the network, without forwarding or translation.
    pub fn of(node: &Node, pod: &'a Pod) -> Self {
        let netns = Netns::new(&format!("{}-nested", node.lab.name())).unwrap();
        let (outer, inner) = (pod.netns().unwrap(), netns.name());
        ip(&[
            "-n",
            outer.name(),
            "link",
            "add",
            "docker0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            inner,
        ])
        .unwrap();
        outer.add_address("docker0", "172.17.0.1/16").unwrap();
        netns.add_address("eth0", &format!("{NESTED_IP}/16")).unwrap();
        for (name, device) in [(outer.name(), "docker0"), (inner, "eth0")] {
            ip(&["-n", name, "link", "set", device, "up"]).unwrap();
        }
        ip(&["-n", inner, "route", "add", "default", "via", "172.17.0.1"]).unwrap();
        let cgroup = pod.cgroup().join("docker/0123456789ab");
        std::fs::create_dir_all(&cgroup).unwrap();
        Self { pod, netns, cgroup }
    }

    /// Turns forwarding on, and translates source addresses with this rule.
    pub fn masquerade(&self, how: &str) {
        self.pod
            .netns()
            .unwrap()
            .sysctl("net/ipv4/ip_forward", "1")
            .unwrap();
        let rules = format!(
            "table ip nat {{ chain post {{ type nat hook postrouting priority srcnat; ip saddr 172.17.0.0/16 {how}; }}; }}"
        );
        nft(self.pod.command("nft").unwrap(), &rules);
    }

    pub fn dial(&self, words: &[&str]) -> Outcomes {
        let mut command = command_in(&client_binary(), Some(&self.cgroup), self.netns.file()).unwrap();
        let child = command.arg("dial").args(words).stdout(Stdio::piped()).spawn();
        outcomes(child.unwrap())
    }
}

/// Runs nft with rules to add or to delete.
pub fn nft(mut command: Command, rules: &str) {
    let output = command.arg(rules).output().unwrap();
    assert!(output.status.success(), "{rules}: {output:?}");
}
