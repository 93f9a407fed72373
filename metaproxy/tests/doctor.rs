//! `metaproxy doctor` on nodes of which something is wrong.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::process::{Command, Output};

use common::{Node, agent_binary, node};
use serde_json::Value;
use xtask::lab::foreign::{Attach, Foreign};
use xtask::lab::leftovers::snapshot;
use xtask::lab::sts::FakeSts;
use xtask::lab::{bpf, imds};

fn doctor(node: &Node, program: &[&str], words: &[&str]) -> Output {
    let (program, before) = program.split_first().unwrap();
    let mut command = node.host_command(program);
    let given = |flag: &str| words.contains(&flag);
    command.args(before).arg("doctor").args(words);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.arg("--runtime-dir").arg(node.lab.runtime_dir());
    if !given("--cgroup") && !given("--cgroup-root") {
        command.arg("--cgroup").arg(node.lab.kubepods());
    }
    if !given("--fix-leftovers") {
        command.args(["--sts-endpoint", &FakeSts::url(), "--output", "json"]);
    }
    command.output().unwrap()
}

/// Findings that are not ok, as `check: level: sentence -> advice`; and the exit status.
fn findings_of(output: &Output) -> (Vec<String>, Option<i32>) {
    let report: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let text = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
    let bad = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|one| one["level"] != "ok")
        .map(|one| {
            let (check, level) = (text(one, "check"), text(one, "level"));
            format!(
                "{check}: {level}: {} -> {}",
                text(one, "says"),
                text(one, "advice")
            )
        })
        .collect();
    (bad, output.status.code())
}

fn findings(node: &Node, words: &[&str]) -> (Vec<String>, Option<i32>) {
    findings_of(&doctor(node, &[agent_binary().to_str().unwrap()], words))
}

fn run_in(node: &Node, words: &[&str]) {
    let output = node
        .lab
        .node()
        .run(|| Command::new(words[0]).args(&words[1..]).output())
        .unwrap()
        .unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// One finding, which begins so and advises that.
#[track_caller]
fn only(found: (Vec<String>, Option<i32>), begins: &str, advises: &str, exit: i32) {
    let (found, code) = found;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with(begins), "{found:?}");
    assert!(found[0].contains(advises), "{found:?}");
    assert_eq!(code, Some(exit));
}

#[test]
fn a_clean_node_gives_no_warning_and_each_fault_is_found_named_and_advised_on() {
    let Some(node) = node() else { return };
    assert_eq!(findings(&node, &[]), (Vec::new(), Some(0)), "a clean node");
    assert_eq!(
        findings(&node, &["--role", "arn:aws:iam::123456789012:role/a"]).1,
        Some(0)
    );

    {
        let _alone = Foreign::attach(&node.lab.kubepods(), Attach::Alone).unwrap();
        let (found, code) = findings(&node, &[]);
        assert_eq!(code, Some(2));
        assert!(
            found[0].starts_with("hooks' users: problem: program ")
                && found[0].contains("at cgroup_inet4_connect of"),
            "{found:?}"
        );
        assert!(found[0].contains("bpftool cgroup detach"), "{found:?}");
        assert!(found[1].starts_with("hooks: problem:"), "{found:?}");
    }
    {
        let _beside = Foreign::attach(&node.lab.kubepods(), Attach::Multi).unwrap();
        assert_eq!(
            findings(&node, &[]),
            (Vec::new(), Some(0)),
            "one that leaves room"
        );
    }
    let listener = node
        .lab
        .node()
        .run(|| std::net::TcpListener::bind("0.0.0.0:18181"))
        .unwrap()
        .unwrap();
    let holder = format!("(pid {})", std::process::id());
    only(
        findings(&node, &["--listen-port", "18181"]),
        "ports: problem: --listen-port 0.0.0.0:18181: Address already in use",
        &holder,
        2,
    );
    drop(listener);
    only(
        findings(&node, &["--cgroup-root", "/tmp"]),
        "cgroup: problem: --cgroup-root /tmp",
        "see --cgroup and --cgroup-root",
        2,
    );
    let (found, code) = findings(
        &node,
        &["--imds-endpoint", "http://127.0.0.1:9", "--region", "eu-west-1"],
    );
    assert_eq!(code, Some(2));
    assert!(
        found[0].starts_with("IMDS: problem: at http://127.0.0.1:9:"),
        "{found:?}"
    );
    assert!(found[0].contains("modify-instance-metadata-options"), "{found:?}");

    node.imds.behave(imds::Behaviour {
        requires_tokens: true,
        ..imds::Behaviour::default()
    });
    let output = doctor(&node, &[agent_binary().to_str().unwrap()], &[]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(findings_of(&output), (Vec::new(), Some(0)));
    assert!(said.contains("it requires session tokens (IMDSv2)"), "{said}");

    let agent = agent_binary().to_str().unwrap();
    let without = [
        "setpriv",
        "--no-new-privs",
        "--inh-caps=-all",
        "--bounding-set=-all,+net_admin,+dac_read_search",
        agent,
    ];
    let (found, code) = findings_of(&doctor(&node, &without, &[]));
    assert_eq!(code, Some(2));
    assert!(
        found[0].contains("this process lacks BPF (to load the programs), PERFMON"),
        "{found:?}"
    );
    assert_eq!(bpf::left_over(), common::NOTHING, "what was tried is gone");
    assert!(!node.lab.kubepods().read_dir().unwrap().flatten().any(|entry| {
        entry
            .file_name()
            .to_string_lossy()
            .starts_with("metaproxy-doctor")
    }));
}

#[test]
fn what_others_have_left_is_removed_and_nothing_else() {
    let Some(node) = node() else { return };
    let others: [&[&str]; 4] = [
        &[
            "iptables-legacy",
            "-t",
            "nat",
            "-A",
            "PREROUTING",
            "-d",
            "169.254.170.2",
            "-p",
            "tcp",
            "--dport",
            "80",
            "-j",
            "DNAT",
            "--to-destination",
            "127.0.0.1:51679",
        ],
        &[
            "iptables-nft",
            "-t",
            "nat",
            "-A",
            "POSTROUTING",
            "-s",
            "10.9.0.0/16",
            "-j",
            "MASQUERADE",
        ],
        &[
            "iptables-nft",
            "-t",
            "nat",
            "-A",
            "PREROUTING",
            "-d",
            "169.254.169.254",
            "-p",
            "tcp",
            "--dport",
            "8080",
            "-j",
            "DNAT",
            "--to-destination",
            "127.0.0.1:1",
        ],
        &[
            "iptables-legacy",
            "-A",
            "FORWARD",
            "-d",
            "169.254.169.254",
            "-p",
            "tcp",
            "--dport",
            "80",
            "-j",
            "REJECT",
        ],
    ];
    for words in others {
        run_in(&node, words);
    }
    let before = snapshot(node.lab.node()).unwrap();
    let rule = |tool: &'static str, interface: &[&'static str]| -> Vec<&'static str> {
        let mut words = vec![tool, "-t", "nat", "-A", "PREROUTING", "-d", "169.254.169.254/32"];
        words.extend(interface);
        words.extend([
            "-p",
            "tcp",
            "--dport",
            "80",
            "-j",
            "DNAT",
            "--to-destination",
            "10.0.0.1:8181",
        ]);
        words
    };
    for words in [
        rule("iptables-legacy", &["-i", "docker0"]),
        rule("iptables-nft", &["-i", "docker0"]),
        rule("iptables-legacy", &["-i", "cali+"]),
        rule("iptables-legacy", &["-i", "cni0"]),
        rule("iptables-nft", &["!", "-i", "eth0"]),
    ] {
        run_in(&node, &words);
    }
    run_in(
        &node,
        &[
            "ip",
            "link",
            "add",
            "pod-id-link0",
            "type",
            "veth",
            "peer",
            "name",
            "pod-id-peer",
        ],
    );

    let (found, code) = findings(&node, &[]);
    assert_eq!(code, Some(1));
    assert_eq!(found.len(), 6, "{found:#?}");
    let advice = "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 -i cni0 -p tcp -m tcp --dport 80 -j DNAT \
                  --to-destination 10.0.0.1:8181";
    assert!(found.iter().any(|one| one.contains(advice)), "{found:#?}");
    assert!(
        found
            .iter()
            .any(|one| one.contains("ip link delete pod-id-link0")),
        "{found:#?}"
    );

    let agent = agent_binary().to_str().unwrap();
    let fixed = doctor(&node, &[agent], &["--fix-leftovers"]);
    let said = String::from_utf8_lossy(&fixed.stdout);
    assert!(fixed.status.success(), "{fixed:?}");
    assert_eq!(said.matches("removed: ").count(), 6, "{said}");
    assert_eq!(
        snapshot(node.lab.node()).unwrap(),
        before,
        "nothing else was touched"
    );
    assert_eq!(findings(&node, &[]), (Vec::new(), Some(0)));
    let again = doctor(&node, &[agent], &["--fix-leftovers"]);
    assert!(again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("nothing of kube2iam"));
}

/// Where the kernel's tree of cgroups v2 is mounted nowhere, as on nodes that boot with cgroup v1 alone.
#[test]
fn a_node_without_cgroup_v2_is_told_how_to_have_it() {
    let Some(node) = node() else { return };
    let without = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        "umount --all --lazy --types cgroup2 && exec \"$@\"",
        "sh",
        agent_binary().to_str().unwrap(),
    ];
    only(
        findings_of(&doctor(&node, &without, &[])),
        "cgroup: problem: ",
        "mount -t cgroup2",
        2,
    );
}
