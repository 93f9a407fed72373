//! Decides whether a leftover may still be in use. It counts as used if there is any sign of that. A rule that is
//! kept needlessly does no harm beside an agent, but a rule that is removed too early gives pods the node's
//! credentials.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::path::Path;
use std::time::Duration;

use super::Usage;
use crate::doctor::processes::{self, Process};
use crate::intercept::tcp_sockets;

/// The directory of pods' logs. The kubelet keeps a directory `NAMESPACE_NAME_UID` in it for each pod of the node,
/// running or not.
const POD_LOGS: &str = "/var/log/pods";

/// The address at which the EKS Pod Identity agent listens (its configuration package).
const POD_IDENTITY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)), 80);

/// The time limit of a connection to a listener on this node, in any of its network namespaces.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// Flags that only kiam's agent has. Its second version runs as `/agent`, which is no unique name.
const KIAM_FLAGS: [&str; 4] = [
    "--iptables",
    "--host-interface",
    "--server-address",
    "--no-iptables-remove",
];

/// The processes and pods of this node.
#[derive(Debug, Default)]
pub(super) struct NodeUsage {
    /// The processes; `None` if not all are visible.
    processes: Option<Vec<Process>>,
    /// The names of pods.
    pods: Vec<String>,
}

/// Software that creates leftovers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Software {
    Kube2iam,
    Kiam,
    PodIdentity,
}

impl Software {
    fn name(self) -> &'static str {
        match self {
            Self::Kube2iam => "kube2iam",
            Self::Kiam => "kiam",
            Self::PodIdentity => "the EKS Pod Identity agent",
        }
    }

    fn is(self, process: &Process) -> bool {
        let is_called = |wanted| process.names().any(|name| name == wanted);
        match self {
            Self::Kube2iam => is_called("kube2iam"),
            Self::Kiam => is_called("kiam") || is_called("agent") && process.arguments().any(is_kiams_flag),
            Self::PodIdentity => is_called("eks-pod-identity-agent"),
        }
    }

    /// Recognizes a pod of this software by its name, as the software's manifests and charts name pods:
    /// `kube2iam-x2v4k`, `kiam-agent-x2v4k`.
    fn is_pod(self, pod: &str) -> bool {
        let has = |word| pod.split('-').any(|part| part == word);
        match self {
            Self::Kube2iam => has("kube2iam"),
            Self::Kiam => has("kiam"),
            Self::PodIdentity => pod.contains("eks-pod-identity-agent"),
        }
    }
}

fn is_kiams_flag(word: &str) -> bool {
    let name = word.split('=').next().unwrap_or(word);
    KIAM_FLAGS.contains(&name)
}

impl NodeUsage {
    pub(super) fn of_this_node() -> Self {
        Self {
            processes: processes::sees_all().then(processes::all),
            pods: pods(Path::new(POD_LOGS)),
        }
    }

    /// Reports whether a rule is in use that sends connections to a target.
    pub(super) fn of_rule(&self, target: SocketAddrV4) -> Usage {
        // A listener at any address counts, because the node's address may have changed since the rule was made.
        match tcp_sockets::listener(target.port(), None) {
            Some(listener) => self.unless_made_by(&RULE_MAKERS, Usage::PortOf(listener)),
            None if answers(target) => {
                self.unless_made_by(&RULE_MAKERS, Usage::PortOf(format!("something at {target}")))
            }
            None => self.unless_made_by(&RULE_MAKERS, self.seen()),
        }
    }

    /// Reports whether the interface of the EKS Pod Identity agent is in use.
    pub(super) fn of_link(&self) -> Usage {
        let software = [Software::PodIdentity];
        match tcp_sockets::listener(POD_IDENTITY.port(), Some(POD_IDENTITY.ip())) {
            Some(listener) => self.unless_made_by(&software, Usage::PortOf(listener)),
            None => self.unless_made_by(&software, self.seen()),
        }
    }

    /// Returns `No` if all processes are visible.
    fn seen(&self) -> Usage {
        if self.processes.is_some() {
            Usage::No
        } else {
            Usage::Unknown
        }
    }

    /// Returns the first of this software that runs or has a pod on this node, or else `otherwise`.
    fn unless_made_by(&self, software: &[Software], otherwise: Usage) -> Usage {
        let runs = |maker: &Software| self.processes.iter().flatten().any(|process| maker.is(process));
        let is_here = |maker: &Software| self.pods.iter().any(|pod| maker.is_pod(pod));
        let mut software = software.iter();
        software
            .find(|maker| runs(maker) || is_here(maker))
            .map_or(otherwise, |maker| Usage::By(maker.name()))
    }
}

const RULE_MAKERS: [Software; 2] = [Software::Kube2iam, Software::Kiam];

fn answers(target: SocketAddrV4) -> bool {
    TcpStream::connect_timeout(&target.into(), CONNECT_TIMEOUT).is_ok()
}

/// Returns the names of this node's pods; none if their logs are in another directory.
fn pods(logs: &Path) -> Vec<String> {
    let entries = fs::read_dir(logs).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.split('_').nth(1)?.to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn usage(processes: &[&[&str]], pods: &[&str]) -> NodeUsage {
        let processes = processes.iter().map(|words| Process::with_words(words));
        NodeUsage {
            processes: Some(processes.collect()),
            pods: pods.iter().map(|&pod| pod.to_owned()).collect(),
        }
    }

    /// Returns a port without a listener.
    fn free_port() -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1)
    }

    #[rstest]
    #[case::kube2iam(&["kube2iam", "--iptables=true"], Usage::By("kube2iam"))]
    #[case::kiam_3(&["/kiam", "agent", "--iptables"], Usage::By("kiam"))]
    #[case::kiam_2(
        &["/agent", "--port=8181", "--iptables", "--host-interface=cali+"],
        Usage::By("kiam")
    )]
    #[case::another_agent(&["/agent", "--port=8181"], Usage::No)]
    #[case::the_other_daemon(&["/eks-pod-identity-agent", "server"], Usage::No)]
    fn rules_are_in_use_while_their_daemon_runs(#[case] words: &[&str], #[case] want: Usage) {
        let usage = usage(&[&["/usr/bin/kubelet"], words], &[]);
        assert_eq!(usage.of_rule(free_port()), want);
    }

    #[rstest]
    #[case("kube2iam-x2v4k", Usage::By("kube2iam"))]
    #[case("kiam-agent-x2v4k", Usage::By("kiam"))]
    #[case("tekiamo-x2v4k", Usage::No)]
    fn rules_are_in_use_while_a_pod_of_their_daemon_is_on_the_node(#[case] pod: &str, #[case] want: Usage) {
        assert_eq!(usage(&[], &[pod]).of_rule(free_port()), want);
    }

    #[test]
    fn rules_are_in_use_while_a_process_listens_at_their_target() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let target = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), port);
        let used = usage(&[], &[]).of_rule(target);
        assert!(
            matches!(&used, Usage::PortOf(holder) if holder.contains("(pid ")),
            "{used:?}"
        );
    }

    #[test]
    fn usage_is_unknown_if_the_nodes_processes_are_not_visible() {
        assert_eq!(NodeUsage::default().of_rule(free_port()), Usage::Unknown);
    }

    #[test]
    fn pods_of_the_node_are_known_by_their_logs() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("kube-system_kiam-agent-x2v4k_0a1b")).unwrap();
        fs::write(dir.path().join("strange"), "").unwrap();
        assert_eq!(pods(dir.path()), ["kiam-agent-x2v4k"]);
        assert!(pods(&dir.path().join("none")).is_empty());
    }
}
