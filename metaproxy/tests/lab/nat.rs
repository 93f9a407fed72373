//! Addresses that do not identify a pod: NAT inside a pod, and pods that share an address.

use std::net::IpAddr;
use std::path::Path;

use crate::common::attackers::{CLOSED, requests, unlimited_agent};
use crate::common::identity::{assert_only, twins};
use crate::common::nested::Nested;
use crate::common::{counts, dial, node, outcomes, start_dial};
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;

/// Returns a pod whose manifest names these addresses.
fn reported(pod: &'static str, ips: &[&str]) -> PodSpec {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
    PodSpec {
        reported_ips: Some(ips),
        ..PodSpec::with_role(pod, &format!("role-{pod}"))
    }
}

#[rstest]
#[case::masquerade("masquerade")]
#[case::masquerade_with_random_ports("masquerade fully-random")]
#[case::snat("snat to 10.244.1.2")]
fn a_process_behind_nat_inside_its_pod_is_served_as_its_pod(#[case] how: &str) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let nested = Nested::of(&node, &a);
    nested.masquerade(how);
    let _agent = unlimited_agent(&node);
    let count = requests(1000);
    assert_eq!(
        nested.dial(&["--count", &count.to_string(), "--threads", "4", "--pause", "1"]),
        counts([("role-a", count)])
    );
    let mut modes = vec!["nonblocking", "fastopen", "uring"];
    if Path::new("/proc/sys/net/mptcp/enabled").exists() {
        modes.push("mptcp");
    }
    for mode in modes {
        assert_eq!(nested.dial(&["--mode", mode]), counts([("role-a", 1)]), "{mode}");
    }
    assert_eq!(
        dial(&a, &["--count", "100"]),
        counts([("role-a", 100)]),
        "the pod itself"
    );
}

/// If the client's address was changed on the way, the agent accepts it only if it is one of the pod's addresses.
#[rstest]
#[case::podips_unknown(&[])]
#[case::podips_without_the_peer(&["10.244.9.9", "fd00:244::9"])]
fn a_process_behind_nat_is_refused_if_its_pods_addresses_do_not_hold_the_peer(#[case] ips: &[&str]) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(reported("a", ips)).unwrap();
    let nested = Nested::of(&node, &a);
    nested.masquerade("masquerade");
    let _agent = unlimited_agent(&node);
    // The pod itself dials first. Later the kernel could change the port of its connections, if a connection behind
    // the NAT has just used that port.
    assert_eq!(
        dial(&a, &["--count", "100"]),
        counts([("role-a", 100)]),
        "the pod itself, without NAT"
    );
    let got = nested.dial(&["--count", "100", "--timeout", "2000"]);
    assert_only(&got, &CLOSED, "closed without an answer");
}

/// Such pods exist if a network plugin gives pods another address for traffic that leaves the cluster, or if a second
/// interface has the default route.
#[rstest]
#[case::podips_of_another_address(&["fd00:244:0:1::2"])]
#[case::podips_unknown(&[])]
fn a_pod_whose_source_address_is_not_in_podips_is_served_as_itself(#[case] ips: &[&str]) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(reported("a", ips)).unwrap();
    let netns = a.netns().unwrap();
    netns.add_address("lo", "10.244.99.99/32").unwrap();
    let back = ["route", "add", "10.244.99.99/32", "via", "10.244.1.2"];
    assert!(node.host_command("ip").args(back).status().unwrap().success());
    let _agent = unlimited_agent(&node);
    let count = requests(500);
    for source in ["10.244.99.99:0", "10.244.1.2:0"] {
        assert_eq!(
            dial(
                &a,
                &[
                    "--source",
                    source,
                    "--count",
                    &count.to_string(),
                    "--threads",
                    "4"
                ]
            ),
            counts([("role-a", count)]),
            "{source}"
        );
    }
}

/// A rule routes answers to one of the two pods by the port, so that both pods can send requests at the same time.
#[rstest]
#[case::podips_known(true)]
#[case::podips_unknown(false)]
fn two_pods_with_the_same_address_are_each_served_as_themselves_at_the_same_time(#[case] known: bool) {
    let Some(node) = node() else { return };
    let (victim, twin) = if known {
        twins(&node)
    } else {
        let victim = node.lab.pod(reported("victim", &[])).unwrap();
        let spec = PodSpec {
            same_address_as: Some(victim.number()),
            ..reported("twin", &[])
        };
        let twin = node.lab.pod(spec).unwrap();
        (victim, twin)
    };
    let rules = [
        format!(
            "rule add ipproto tcp dport 40000-49999 to {} lookup 77",
            victim.ip()
        ),
        format!("route add {}/32 dev pod{} table 77", victim.ip(), twin.number()),
    ];
    for rule in rules {
        let status = node.host_command("ip").args(rule.split(' ')).status().unwrap();
        assert!(status.success(), "{rule}");
    }
    let _agent = unlimited_agent(&node);
    let source = |port: u16| format!("{}:{port}", victim.ip());
    let ask = |pod: &Pod, port: u16, count: &str| {
        let source = source(port);
        let words = ["--source", &source, "--sweep", "--count", count, "--threads", "2"];
        start_dial(pod, &words)
    };
    // The twin's ports are 40,000 to 49,999, and a sweep must stay within them.
    let (rounds, each) = (requests(5_000).div_ceil(10_000), requests(5_000).min(10_000));
    for _ in 0..rounds {
        let count = each.to_string();
        let (of_victim, of_twin) = (ask(&victim, 20_000, &count), ask(&twin, 40_000, &count));
        assert_eq!(outcomes(of_victim), counts([("role-victim", each)]));
        assert_eq!(outcomes(of_twin), counts([("role-twin", each)]));
    }
}
