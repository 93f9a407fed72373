//! Agents and guards beside each other, beside those of other builds, and beside eBPF programs of other software.

use crate::common::identity::{REFUSED, assert_only};
use crate::common::{
    IMDS, IMDS6, MAPPED, UNREACHABLE, agent_binary, client_binary, counts, dial, eventually, node,
};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::bpf_conflicts::{
    AttachMode, ConnectProgram, SockOpsAction, attach_sock_ops, attach_to_egress, detach_links_of,
};
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::recorder::Recorder;
use metaproxy_lab::{bpf, leftovers};
use nix::sys::signal::Signal;

#[test]
fn the_guards_program_is_first_in_the_chain_of_an_uplink() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let other = attach_to_egress(node.lab.node(), "up0").unwrap();
    let craft = || {
        let mut command = a.command(client_binary()).unwrap();
        assert!(
            command
                .args(["craft", "--method", "raw"])
                .output()
                .unwrap()
                .status
                .success()
        );
        recorder.settle(node.lab.node()).unwrap();
        recorder.take_from_others()
    };
    eventually("it arrives", || craft() > 0);
    let _guard = node.closed_guard();
    assert_eq!(craft(), 0, "though another program lets everything pass");
    drop(other);
}

#[test]
fn programs_that_another_process_detaches_are_reported_and_attached_again() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = Agent::start(
        &node.lab,
        &node.spec().with(&["--admin-address", "10.200.0.1:16925"]),
    )
    .unwrap();
    let guard = node.closed_guard();
    let ready = || {
        let mut command = node.host_command("curl");
        let output = command
            .args(["-s", "http://10.200.0.1:16925/readyz?verbose"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ready().contains("[+]interception ok"), "{}", ready());
    let seen_before = node.imds.seen_from_pods();
    for (round, name) in [
        "mp_connect4",
        "mp_sock_ops",
        "mp_getpeername4",
        "mp_guard4",
        "mp_uplink_eth",
    ]
    .into_iter()
    .enumerate()
    {
        let of_guard = name.contains("guard") || name.contains("uplink");
        // The program's name with the suffix 66 is for kernels before 6.15.
        let older = format!("{name}66");
        assert_eq!(
            detach_links_of(&node.lab, name).unwrap() + detach_links_of(&node.lab, &older).unwrap(),
            if of_guard { 2 } else { 1 },
            "{name}, of agent and guard"
        );
        eventually("it is there again", || bpf::detached_links(&node.lab) == 0);
        assert_eq!(dial(&a, &["--peername"]), counts([(IMDS, 1)]), "{name}");
        assert_eq!(dial(&a, &[]), counts([("role-a", 1)]), "{name}");
        if round == 0 {
            agent
                .wait_for("another process has detached mp_connect4")
                .unwrap();
            assert!(
                ready().contains(
                    "[!]interception degraded: another program has detached metaproxy's programs 1 times"
                ),
                "{}",
                ready()
            );
        }
    }
    guard.wait_for("another process has detached").unwrap();
    assert_eq!(node.imds.seen_from_pods(), seen_before);
}

#[test]
fn a_program_that_allows_no_other_is_named_in_the_error() {
    let Some(node) = node() else { return };
    for cgroup in [node.lab.kubepods(), node.lab.cgroup()] {
        let _alone = ConnectProgram::attach(&cgroup, AttachMode::Exclusive).unwrap();
        let mut agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
        assert_eq!(agent.wait().unwrap().code(), Some(1), "{}", agent.logged());
        assert!(
            agent
                .logged()
                .contains("another program that allows no second one"),
            "{}",
            agent.logged()
        );
        let mut guard = node.guard(&["--close", "at-once"]);
        assert_eq!(guard.wait().unwrap().code(), Some(1), "{}", guard.logged());
        node.assert_nothing_loaded();
    }
}

/// The other program is attached as Cilium attaches its own: at the root of the cgroup tree, before or after the
/// agent's.
#[test]
fn the_agent_runs_beside_programs_that_allow_others() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let before = ConnectProgram::attach(&node.lab.cgroup(), AttachMode::Multi).unwrap();
    let _agent = node.agent();
    let _guard = node.closed_guard();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    let after = ConnectProgram::attach(&node.lab.kubepods(), AttachMode::Multi).unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    drop((before, after));
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}

/// Two agents and two guards start in every order, and end from either end of it. One of each is of another build if
/// `cargo xtask test --previous BINARY` names one.
#[test]
fn agents_and_guards_of_two_builds_run_beside_each_other_in_every_order() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let previous = std::env::var_os("METAPROXY_TEST_PREVIOUS")
        .map_or_else(|| agent_binary().to_owned(), std::path::PathBuf::from);
    let before = leftovers::snapshot(node.lab.node()).unwrap();
    let mut orders = 0;
    for order in permutations(&[0, 1, 2, 3]) {
        let mut running: Vec<(bool, Agent)> = Vec::new();
        for which in &order {
            let binary = if which % 2 == 0 {
                agent_binary().to_owned()
            } else {
                previous.clone()
            };
            let is_agent = *which < 2;
            let process = if is_agent {
                let spec = metaproxy_lab::agent::AgentSpec {
                    binary,
                    ..node.spec()
                };
                Agent::start(&node.lab, &spec).unwrap()
            } else {
                let guard = Agent::guard(&node.lab, &binary, &["--close", "at-once"]).unwrap();
                guard.wait_for("guard closed").unwrap();
                guard
            };
            running.push((is_agent, process));
            check(&running, &a, &order);
        }
        // The oldest process is killed first in one half of the orders, the newest first in the other half.
        while !running.is_empty() {
            let index = if orders % 2 == 0 { 0 } else { running.len() - 1 };
            let (_, mut process) = running.remove(index);
            process.signal(Signal::SIGKILL).unwrap();
            process.wait().unwrap();
            if !running.is_empty() {
                check(&running, &a, &order);
            }
        }
        node.assert_nothing_loaded();
        orders += 1;
    }
    assert_eq!(orders, 24);
    assert_eq!(leftovers::snapshot(node.lab.node()).unwrap(), before);
    assert_eq!(node.imds.seen_from_pods(), []);
}

fn check(running: &[(bool, Agent)], pod: &metaproxy_lab::pod::Pod, order: &[usize]) {
    let served = running.iter().any(|(is_agent, _)| *is_agent);
    let want = if served { "role-a" } else { UNREACHABLE };
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(dial(pod, &["--to", to]), counts([(want, 1)]), "{to} of {order:?}");
    }
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for item in items {
        let rest: Vec<usize> = items.iter().copied().filter(|other| other != item).collect();
        for mut order in permutations(&rest) {
            order.insert(0, *item);
            all.push(order);
        }
    }
    all
}

/// Contract 1 is that of agents that stored callers by their 4-tuple. Contract 99 stands for a future one.
#[rstest::rstest]
#[case(1, "0.1.0")]
#[case(99, "7.0.0")]
fn an_agent_or_guard_names_a_process_of_another_contract_and_starts_once_it_has_ended(
    #[case] contract: u32,
    #[case] version: &str,
) {
    let Some(node) = node() else { return };
    let dir = node.lab.runtime_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("instance-other.json");
    let other =
        format!(r#"{{"contract": {contract}, "version": "{version}", "what": "agent", "pid": 4711}}"#);
    std::fs::write(&path, other).unwrap();
    let held = std::fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let mut agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
    assert_eq!(agent.wait().unwrap().code(), Some(1));
    let named = format!(
        "metaproxy {version} (agent, pid 4711) runs on this node with interception contract {contract}"
    );
    assert!(agent.logged().contains(&named), "{}", agent.logged());
    let mut guard = node.guard(&[]);
    assert_eq!(guard.wait().unwrap().code(), Some(1));
    node.assert_nothing_loaded();
    drop(held);
    let pod = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    assert_eq!(dial(&pod, &[]), counts([("role-a", 1)]));
}

/// A program at the pod's own cgroup runs before ours. A program above the pods' cgroup runs after ours.
#[rstest::rstest]
#[case::a_small_option_before_ours(SockOpsAction::TakeRoom(4), true, None)]
#[case::a_small_option_behind_ours(SockOpsAction::TakeRoom(4), false, None)]
#[case::an_option_that_leaves_no_room(SockOpsAction::TakeRoom(16), true, Some("no_room"))]
#[case::a_large_option_behind_ours(SockOpsAction::TakeRoom(16), false, None)]
#[case::flags_cleared_before_ours(SockOpsAction::ClearFlags, true, None)]
#[case::flags_cleared_behind_ours(SockOpsAction::ClearFlags, false, Some("no_option"))]
fn beside_another_sock_ops_program_a_pod_gets_its_own_role_or_a_reported_refusal(
    #[case] action: SockOpsAction,
    #[case] is_before: bool,
    #[case] refused: Option<&str>,
) {
    let Some(node) = node() else { return };
    let pod = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    assert_eq!(dial(&pod, &[]), counts([("role-a", 1)]), "without it");
    let cgroup = if is_before {
        pod.cgroup().to_owned()
    } else {
        node.lab.cgroup()
    };
    let other = attach_sock_ops(&cgroup, action).unwrap();
    let got = dial(&pod, &["--count", "20", "--timeout", "1000"]);
    match refused {
        None => assert_eq!(got, counts([("role-a", 20)])),
        Some(kind) => {
            assert_only(&got, &REFUSED, "beside it");
            let line = agent.wait_for(&format!("kind=\"{kind}\"")).unwrap();
            // For a connection without the caller's option, only the program at the client's side knows the pod.
            assert_eq!(line.contains("pod apps/a"), kind == "no_room", "{line}");
        }
    }
    drop(other);
    eventually("the program is gone", || {
        dial(&pod, &[]) == counts([("role-a", 1)])
    });
}
