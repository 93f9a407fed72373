//! Rules and interfaces that kube2iam, kiam and the EKS Pod Identity agent leave on a node, and
//! `doctor --fix-leftovers`, which removes them.

use std::process::{Command, Output};

use crate::common::doctor::{doctor, doctor_by, examined, must_see_the_nodes_processes};
use crate::common::{Node, agent_binary, node};
use metaproxy_lab::leftovers::snapshot;

/// Runs a command line, whose words are separated by blanks, in the node's network namespace.
#[track_caller]
fn run_in(node: &Node, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let run = || Command::new(words[0]).args(&words[1..]).output();
    let output = node.lab.node().run(run).unwrap().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .concat()
}

/// Returns the command that adds a rule as kube2iam and kiam write it.
fn rule(tool: &str, interface: &str, target: &str) -> String {
    format!(
        "{tool} -w -t nat -A PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination {target} {interface}"
    )
}

/// Commands that add similar rules of other software: of the ECS agent, of lyft's metadataproxy, of an administrator.
const OF_OTHERS: [&str; 9] = [
    "iptables-legacy -w -t nat -A PREROUTING -p tcp -d 169.254.170.2 --dport 80 -j DNAT --to-destination 127.0.0.1:51679",
    "iptables-nft -t nat -A PREROUTING -i docker0 -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination 127.0.0.1:8000",
    "iptables-legacy -w -t nat -N THEIRS",
    "iptables-legacy -w -t nat -A THEIRS -i docker0 -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
    "iptables-nft -t nat -A PREROUTING -i docker0 -p tcp -d 169.254.169.254 --dport 80 -j REDIRECT --to-ports 8181",
    "iptables-nft -t nat -A POSTROUTING -s 10.9.0.0/16 -j MASQUERADE",
    "iptables-nft -t nat -A PREROUTING -d 169.254.169.254 -p tcp --dport 8080 -j DNAT --to-destination 127.0.0.1:1",
    "iptables-legacy -w -A FORWARD -d 169.254.169.254 -p tcp --dport 80 -j REJECT",
    "ip6tables-nft -t nat -A PREROUTING -i docker0 -p tcp -d fd00:ec2::254 --dport 80 -j DNAT --to-destination [fd00::1]:8181",
];

const POD_IDENTITY: [&str; 2] = [
    "ip link add pod-id-link0 type veth peer name pod-id-peer",
    "ip address add 169.254.170.23/32 dev pod-id-link0",
];

#[test]
fn leftovers_of_other_software_are_removed_and_nothing_else_is_changed() {
    must_see_the_nodes_processes();
    let Some(node) = node() else { return };
    OF_OTHERS.iter().for_each(|line| run_in(&node, line));
    let before = snapshot(node.lab.node()).unwrap();
    for rule in [
        "169.254.170.2/32",
        "-j REJECT",
        "--to-destination 127.0.0.1:8000",
        "--to-ports 8181",
        "-A THEIRS -d 169.254.169.254/32",
        "fd00:ec2::254",
    ] {
        assert!(before.contains(rule), "{rule} in {before}");
    }
    let target = "10.0.0.1:8181";
    for line in [
        rule("iptables-legacy", "-i docker0", target),
        rule("iptables-nft", "-i docker0", target),
        rule("iptables-legacy", "-i cali+", target),
        rule("iptables-legacy", "-i cni0", target),
        rule("iptables-nft", "! -i eth0", target),
    ] {
        run_in(&node, &line);
    }
    POD_IDENTITY.iter().for_each(|line| run_in(&node, line));

    let found = examined(&node, &[]);
    assert_eq!(
        (found.bad().len(), found.code),
        (6, Some(1)),
        "{:#?}",
        found.bad()
    );
    let advised = |command: &str| found.bad().iter().any(|one| one.contains(command));
    assert!(advised(
        "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 -i cni0 -p tcp -m tcp --dport 80 -j DNAT \
         --to-destination 10.0.0.1:8181"
    ));
    assert!(advised("ip link delete pod-id-link0"));

    let fixed = doctor(&node, &["--fix-leftovers"]);
    assert!(fixed.status.success(), "{fixed:?}");
    assert_eq!(said(&fixed).matches("removed: ").count(), 6, "{fixed:?}");
    assert_eq!(
        snapshot(node.lab.node()).unwrap(),
        before,
        "nothing else was touched"
    );
    examined(&node, &[]).is_clean();
    let again = doctor(&node, &["--fix-leftovers"]);
    assert!(again.status.success());
    assert!(said(&again).starts_with("nothing of kube2iam"), "{again:?}");
}

#[test]
fn rules_and_interfaces_that_lead_to_a_listening_process_are_kept() {
    must_see_the_nodes_processes();
    let Some(node) = node() else { return };
    run_in(&node, &rule("iptables-legacy", "-i docker0", "10.200.0.1:18181"));
    run_in(&node, &rule("iptables-nft", "-i docker0", "10.200.0.1:18181"));
    POD_IDENTITY.iter().for_each(|line| run_in(&node, line));
    run_in(&node, "ip link set pod-id-link0 up");
    let before = snapshot(node.lab.node()).unwrap();
    let listen = || {
        ["10.200.0.1:18181", "169.254.170.23:80"].map(|address| std::net::TcpListener::bind(address).unwrap())
    };
    let listeners = node.lab.node().run(listen).unwrap();

    let found = examined(&node, &[]);
    assert_eq!(found.bad().len(), 3, "{:#?}", found.bad());
    let holder = format!("(pid {}) listens", std::process::id());
    assert!(
        found.bad().iter().all(|one| one.contains(&holder)),
        "{:#?}",
        found.bad()
    );
    let kept = doctor(&node, &["--fix-leftovers"]);
    assert_eq!(kept.status.code(), Some(1), "{kept:?}");
    assert_eq!(said(&kept).matches("error: not removed: ").count(), 3, "{kept:?}");
    assert_eq!(snapshot(node.lab.node()).unwrap(), before);

    drop(listeners);
    let fixed = doctor(&node, &["--fix-leftovers"]);
    assert!(fixed.status.success(), "{fixed:?}");
    assert_eq!(said(&fixed).matches("removed: ").count(), 3, "{fixed:?}");
}

/// An interface with that name but without the address has an unknown owner, or is just being set up.
#[test]
fn an_interface_without_the_agents_address_is_kept() {
    let Some(node) = node() else { return };
    run_in(&node, POD_IDENTITY[0]);
    examined(&node, &[]).is_clean();
    assert!(doctor(&node, &["--fix-leftovers"]).status.success());
    run_in(&node, "ip link show pod-id-link0");
}

/// iptables is missing, as in the agent's own container, which contains only the agent.
#[test]
fn without_iptables_only_a_node_with_nat_tables_gets_an_error() {
    let Some(node) = node() else { return };
    let bare = ["/usr/bin/env", "PATH=/nowhere", agent_binary().to_str().unwrap()];
    let fix = || doctor_by(&node, &bare, &["--fix-leftovers"]);
    let clean = fix();
    assert!(clean.status.success(), "{clean:?}");
    assert!(said(&clean).starts_with("nothing of kube2iam"), "{clean:?}");
    for (tool, missing) in [
        (
            "iptables-legacy",
            "legacy iptables: there is a nat table, and iptables-legacy-save",
        ),
        (
            "iptables-nft",
            "nftables: there is a nat table, and iptables-nft-save",
        ),
    ] {
        run_in(&node, &rule(tool, "-i docker0", "10.0.0.1:8181"));
        let unseen = fix();
        assert_eq!(unseen.status.code(), Some(1), "{unseen:?}");
        let said = said(&unseen);
        assert!(
            said.contains(missing) && said.contains("install iptables, or run it as root on the node"),
            "{said}"
        );
    }
}
