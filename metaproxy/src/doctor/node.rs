//! The node: ports, and the environment.

use std::net::{Ipv4Addr, TcpListener};

use super::{Examination, Finding};
use crate::admin::asking;
use crate::credentials::http::NetworkEnv;
use crate::health::Part;
use crate::intercept::port;
use crate::status::PartLine;

/// Ports that the agent is told to take.
pub(super) fn ports(examination: &Examination) -> Vec<Finding> {
    const CHECK: &str = "ports";
    // One that runs already has them.
    if let Ok(status) = asking::status(&examination.runtime_dir) {
        let trouble = |wanted: &str| {
            let bad = |part: &&PartLine| part.part == wanted && part.condition != "ok";
            status.parts.iter().find(bad)?.detail.clone()
        };
        let listener = trouble(Part::Listener.label()).map(|detail| {
            let advice = "see \"Host ports and external IPs\" in deploy/README.md";
            Finding::problem(CHECK, detail, advice)
        });
        let admin = trouble(Part::Admin.label())
            .map(|detail| Finding::warning(CHECK, detail, "give another --admin-address, or off"));
        let found: Vec<Finding> = listener.into_iter().chain(admin).collect();
        if found.is_empty() {
            return vec![Finding::ok(CHECK, "an agent is running, and has its ports")];
        }
        return found;
    }
    let admin = examination.admin.map(|address| ("--admin-address", address));
    let listen = examination.listen;
    let fixed = (listen.port() != 0).then_some(("--listen-port", listen));
    let taken: Vec<Finding> = [admin, fixed]
        .into_iter()
        .flatten()
        .filter_map(|(flag, address)| {
            let error = TcpListener::bind(address).err()?;
            Some(Finding::problem(
                CHECK,
                format!(
                    "{flag} {address}: {error}; it is held by {}",
                    port::holder(address)
                ),
                if flag == "--listen-port" {
                    "leave --listen-port away: a free port is found then, and nobody has to know it"
                } else {
                    "give another --admin-address, or off"
                },
            ))
        })
        .collect();
    if taken.is_empty() {
        return vec![Finding::ok(CHECK, "free, those that the agent is told to take")];
    }
    taken
}

/// A proxy that is in the way of what must not go through it.
#[expect(
    clippy::disallowed_methods,
    reason = "conventions of the environment, which are no flags of ours"
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

/// Warns if a flood of connections of one pod can keep those of all others from the listener.
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

/// By a host, a suffix of names, a network (`169.254.0.0/16`) or `*`, as curl and the SDKs read it.
fn is_exempt(rules: &str, address: Ipv4Addr) -> bool {
    rules.split(',').map(str::trim).any(|rule| {
        let (network, bits) = rule.split_once('/').unwrap_or((rule, "32"));
        let in_network = || {
            let network: Ipv4Addr = network.parse().ok()?;
            let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            Some(u32::from(network) & mask == u32::from(address) & mask)
        };
        rule == "*" || in_network().unwrap_or(false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_syncookies_is_warned_of() {
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
