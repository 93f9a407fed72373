//! Checks the node's ports and the environment of this process.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use ipnet::Ipv4Net;

use super::{Examination, Finding};
use crate::admin::client;
use crate::credentials::network_env::NetworkEnv;
use crate::intercept::tcp_sockets;
use crate::introspection::status::{PartLine, Status};
use crate::node_ports::{self, SUGGESTED_ADMIN_PORT};
use crate::telemetry::health::Part;

/// Checks the ports that flags name.
pub(super) fn ports(examination: &Examination) -> Vec<Finding> {
    let listen = Some(examination.listen).filter(|listen| listen.port() != 0);
    let named: Vec<(&str, SocketAddr)> = [(ADMIN_FLAG, examination.admin), (LISTEN_FLAG, listen)]
        .into_iter()
        .filter_map(|(flag, address)| Some((flag, address?)))
        .collect();
    // A running agent has these ports open.
    let mut found = match client::status(&examination.runtime_dir) {
        Ok(status) => ports_of_agent(&status),
        Err(_) => taken_ports(&named),
    };
    found.extend(
        named
            .iter()
            .filter_map(|(flag, address)| wanted_port(flag, *address)),
    );
    if found.is_empty() {
        let says = if named.is_empty() {
            "no flag names one: the listener takes a free one that no other software is known to use"
        } else {
            "free, or the agent's, and no other software is known to use them"
        };
        found.push(Finding::ok(CHECK, says));
    }
    found
}

const CHECK: &str = "ports";
const ADMIN_FLAG: &str = "--admin-address";
const LISTEN_FLAG: &str = "--listen-port";

/// Returns the advice about a flag's port.
fn other_port(flag: &str) -> String {
    if flag == LISTEN_FLAG {
        "leave --listen-port away: a free port is found then, and no other program has to know it".to_owned()
    } else {
        format!(
            "give --admin-address another port, such as {SUGGESTED_ADMIN_PORT}, or off: probes and commands need none"
        )
    }
}

fn ports_of_agent(status: &Status) -> Vec<Finding> {
    let trouble = |wanted: &str| {
        let bad = |part: &&PartLine| part.part == wanted && part.condition != "ok";
        status.parts.iter().find(bad)?.detail.clone()
    };
    let listener = trouble(Part::Listener.label()).map(|detail| {
        let advice = "see deploy/docs/compatibility.md#host-ports-and-external-ips";
        Finding::problem(CHECK, detail, advice)
    });
    let admin =
        trouble(Part::Admin.label()).map(|detail| Finding::warning(CHECK, detail, other_port(ADMIN_FLAG)));
    listener.into_iter().chain(admin).collect()
}

fn taken_ports(named: &[(&str, SocketAddr)]) -> Vec<Finding> {
    let taken = named.iter().filter_map(|(flag, address)| {
        let error = TcpListener::bind(address).err()?;
        let holder = tcp_sockets::holder(*address);
        let says = format!("{flag} {address}: {error}; it is held by {holder}");
        Some(Finding::problem(CHECK, says, other_port(flag)))
    });
    taken.collect()
}

/// Warns of a port that other software uses by default.
fn wanted_port(flag: &str, address: SocketAddr) -> Option<Finding> {
    let port = address.port();
    let who = node_ports::wanted_by(port)?;
    let says = format!(
        "{flag} takes port {port}, which is also that of {who}: if that runs on this node, one of the two does not start"
    );
    Some(Finding::warning(CHECK, says, other_port(flag)))
}

/// Warns of a proxy for connections that must not go through a proxy.
#[expect(
    clippy::disallowed_methods,
    reason = "these are common variables of the environment, not flags of metaproxy"
)]
pub(super) fn proxy() -> Finding {
    const CHECK: &str = "proxy";
    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    let network = NetworkEnv::read();
    let plain = ["HTTP_PROXY", "http_proxy"]
        .iter()
        .find(|name| std::env::var(name).is_ok_and(|value| !value.is_empty()));
    let Some(name) = network
        .https_proxy
        .as_ref()
        .map(|_| "HTTPS_PROXY")
        .or(plain.copied())
    else {
        return Finding::ok(CHECK, "none is set");
    };
    if is_exempt(&network.no_proxy.unwrap_or_default(), METADATA) {
        return Finding::ok(
            CHECK,
            format!("{name} is set, and NO_PROXY names the metadata service"),
        );
    }
    Finding::warning(
        CHECK,
        format!("{name} is set, and NO_PROXY does not name {METADATA}"),
        "what the agent asks the metadata service never goes through a proxy, but other programs of the node do not know that: \
         add 169.254.169.254 to NO_PROXY. A VPC endpoint for STS belongs there too",
    )
}

/// Warns if one pod's flood of connections can keep all other pods from the listener.
pub(super) fn syncookies() -> Option<Finding> {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").ok()?;
    syncookies_finding(&setting)
}

fn syncookies_finding(setting: &str) -> Option<Finding> {
    (setting.trim() == "0").then(|| {
        Finding::warning(
            "syncookies",
            "net.ipv4.tcp_syncookies is 0: a pod that opens connections and leaves them half open keeps other pods from the \
             listener for as long as it does so",
            "set it to 1, the kernel's default: `sysctl -w net.ipv4.tcp_syncookies=1`, and in /etc/sysctl.d",
        )
    })
}

/// Matches an entry of NO_PROXY as curl and the SDKs do: a host, a suffix of names, a network (`169.254.0.0/16`) or
/// `*`.
fn is_exempt(rules: &str, address: Ipv4Addr) -> bool {
    rules.split(',').map(str::trim).any(|rule| {
        let host = || rule.parse::<Ipv4Addr>().map(Ipv4Net::from);
        let network = rule.parse::<Ipv4Net>().or_else(|_| host());
        rule == "*" || network.is_ok_and(|network| network.contains(&address))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case::suggested("127.0.0.1:16925", None)]
    #[case::a_csi_driver("127.0.0.1:9808", Some("CSI livenessprobe"))]
    #[case::the_kubelet("0.0.0.0:10250", Some("the kubelet"))]
    #[case::kube2iam("[::]:8181", Some("kube2iam"))]
    fn a_port_that_other_software_uses_is_a_warning(#[case] address: &str, #[case] who: Option<&str>) {
        let found = wanted_port(ADMIN_FLAG, address.parse().unwrap());
        let says = found.as_ref().map(|finding| finding.says.as_str());
        assert_eq!(says.is_some(), who.is_some());
        assert!(
            says.unwrap_or_default().contains(who.unwrap_or_default()),
            "{says:?}"
        );
    }

    #[test]
    fn a_node_without_syncookies_gets_a_warning() {
        assert!(syncookies_finding("0\n").is_some());
        assert!(syncookies_finding("1\n").is_none());
        assert!(syncookies_finding("2\n").is_none());
    }

    #[test]
    fn a_proxys_exceptions_are_hosts_networks_and_all() {
        let metadata = Ipv4Addr::new(169, 254, 169, 254);
        for rules in [
            "169.254.169.254",
            "localhost, 169.254.0.0/16 ,.svc",
            "*",
            "0.0.0.0/0",
        ] {
            assert!(is_exempt(rules, metadata), "{rules}");
        }
        for rules in [
            "",
            "localhost,.svc",
            "10.0.0.0/8",
            "169.254.170.0/24",
            "169.254.169.254/40",
        ] {
            assert!(!is_exempt(rules, metadata), "{rules}");
        }
    }
}
