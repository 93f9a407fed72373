//! Short tests of what differs between kernels. `cargo xtask vm-test` runs them on Debian's kernels. Like all other
//! tests, they also run on the machine's own kernel. They call only the binaries and `ip`.

use std::path::Path;

use crate::common::identity::{REFUSED, assert_only};
use crate::common::{
    IMDS, IMDS6, MAPPED, Node, UNREACHABLE, agent_binary, client_binary, counts, dial, eventually, node,
    outcomes, start_dial,
};
use aya::util::KernelVersion;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::{Families, Pod, PodSpec};
use metaproxy_lab::recorder::Recorder;
use nix::sys::signal::Signal;

/// Returns a spec with `--guard packets`. On kernels without tcx, packets are dropped at the pods' sockets only with
/// this flag.
fn spec(node: &Node) -> AgentSpec {
    node.spec().with(&["--guard", "packets"])
}

fn guard(node: &Node) -> Agent {
    let flags = ["--close", "at-once", "--guard", "packets"];
    let guard = Agent::guard(&node.lab, agent_binary(), &flags).unwrap();
    guard.wait_for("guard closed").unwrap();
    guard
}

#[test]
fn connections_of_every_kind_are_intercepted_and_identified() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let of = |name, families| PodSpec {
        families,
        ..PodSpec::with_role(name, name)
    };
    let four = node.lab.pod(of("four", Families::Ipv4)).unwrap();
    let six = node.lab.pod(of("six", Families::Ipv6)).unwrap();
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let mut modes = vec!["plain", "nonblocking", "fastopen", "uring"];
    if Path::new("/proc/sys/net/mptcp/enabled").exists() {
        modes.push("mptcp");
    }
    for to in [IMDS, MAPPED, IMDS6] {
        for mode in &modes {
            for (pod, role) in [(&a, "role-a"), (&b, "role-b")] {
                let got = dial(pod, &["--to", to, "--mode", mode]);
                assert_eq!(got, counts([(role, 1)]), "{mode} to {to}");
            }
        }
        assert_eq!(dial(&a, &["--to", to, "--peername"]), counts([(to, 1)]));
    }
    assert_eq!(
        dial(&a, &["--to", IMDS6, "--mode", "v6only"]),
        counts([("role-a", 1)])
    );
    for (pod, name) in [(&four, "four"), (&six, "six")] {
        for to in [MAPPED, IMDS6] {
            assert_eq!(dial(pod, &["--to", to]), counts([(name, 1)]), "{name} to {to}");
        }
    }
    for option in ["--freebind", "--transparent"] {
        assert_eq!(
            dial(&four, &["--to", IMDS6, option]),
            counts([("four", 1)]),
            "{option}"
        );
    }
    assert_eq!(node.imds.seen_from_pods(), []);
}

#[test]
fn no_identity_is_lost_or_mixed_up() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let words = ["--count", "500", "--threads", "4"];
    let (of_a, of_b) = (start_dial(&a, &words), start_dial(&b, &words));
    assert_eq!(outcomes(of_a), counts([("role-a", 500)]));
    assert_eq!(outcomes(of_b), counts([("role-b", 500)]));
}

/// With `tcp_syncookies` 2 the kernel answers every SYN with a cookie, and keeps no state of it. Without timestamps
/// there is more room in the header, and a cookie holds less information.
#[test]
fn callers_are_identified_with_every_setting_of_syncookies_and_timestamps() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let ways = ["0", "1", "2"]
        .into_iter()
        .flat_map(|cookies| ["0", "1"].map(|timestamps| (cookies, timestamps)));
    for (cookies, timestamps) in ways {
        let set = |name: &str, value| {
            node.lab
                .node()
                .sysctl(&format!("net/ipv4/{name}"), value)
                .unwrap()
        };
        set("tcp_syncookies", cookies);
        set("tcp_timestamps", timestamps);
        for to in [IMDS, MAPPED, IMDS6] {
            let got = dial(&a, &["--to", to, "--count", "20"]);
            assert_eq!(
                got,
                counts([("role-a", 20)]),
                "{to}, syncookies {cookies}, timestamps {timestamps}"
            );
        }
    }
}

/// Both ends use fast open without a cookie. The SYN then carries data. The listener does not accept this data,
/// because the caller's option arrives in a later packet.
#[test]
fn callers_are_identified_while_fast_open_is_forced_on() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    // The flags are TFO_CLIENT_ENABLE, TFO_SERVER_ENABLE, TFO_CLIENT_NO_COOKIE, TFO_SERVER_COOKIE_NOT_REQD and
    // TFO_SERVER_WO_SOCKOPT1 (include/net/tcp.h). They must be set before there is a listener.
    for netns in [node.lab.node(), a.netns().unwrap()] {
        netns.sysctl("net/ipv4/tcp_fastopen", "1543").unwrap();
    }
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    for to in [IMDS, MAPPED, IMDS6] {
        let got = dial(&a, &["--to", to, "--mode", "fastopen", "--count", "20"]);
        assert_eq!(got, counts([("role-a", 20)]), "{to}");
    }
}

/// While its accept queue is full, the listener drops the ACK that carries the caller's option. The packets after it
/// carry the option too.
#[test]
fn callers_are_identified_after_a_full_accept_queue() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    node.lab.node().sysctl("net/core/somaxconn", "4").unwrap();
    let agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]), "there is a session");
    agent.signal(Signal::SIGSTOP).unwrap();
    let words = ["--count", "16", "--threads", "16", "--timeout", "20000"];
    let asking = start_dial(&a, &words);
    std::thread::sleep(std::time::Duration::from_millis(500));
    agent.signal(Signal::SIGCONT).unwrap();
    assert_eq!(outcomes(asking), counts([("role-a", 16)]));
}

#[test]
fn two_pods_with_one_address_and_a_pod_with_an_unlisted_address_get_their_own_roles() {
    let Some(node) = node() else { return };
    let first = node.lab.pod(PodSpec::with_role("first", "role-first")).unwrap();
    let same = PodSpec {
        same_address_as: Some(first.number()),
        ..PodSpec::with_role("second", "role-second")
    };
    let second = node.lab.pod(same).unwrap();
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let route = |to: &str, pod: &Pod| {
        let words = format!("route replace {to} dev pod{}", pod.number());
        let mut command = node.host_command("ip");
        assert!(command.args(words.split(' ')).status().unwrap().success());
    };
    let own = format!("{}/32", first.ip());
    for _ in 0..5 {
        for (pod, role) in [(&first, "role-first"), (&second, "role-second")] {
            route(&own, pod);
            assert_eq!(dial(pod, &[]), counts([(role, 1)]));
        }
    }
    first
        .netns()
        .unwrap()
        .add_address("lo", "10.244.99.99/32")
        .unwrap();
    route("10.244.99.99/32", &first);
    assert_eq!(
        dial(&first, &["--source", "10.244.99.99:0"]),
        counts([("role-first", 1)])
    );
}

#[test]
fn a_process_outside_of_all_pods_gets_no_answer_from_the_listener() {
    let Some(node) = node() else { return };
    let agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let listeners = agent.listeners().unwrap();
    assert_eq!(listeners.len(), 2, "IPv4 and IPv6");
    for listener in listeners {
        let got = node.host_dial(&["--to", &listener.to_string(), "--timeout", "1000"]);
        assert_only(&got, &REFUSED, "a process of the node");
    }
}

#[test]
fn hostnetwork_pods_and_the_node_are_distinguished_from_pods() {
    let Some(node) = node() else { return };
    let host = |name, spec: PodSpec| {
        let spec = PodSpec {
            name,
            host_network: true,
            ..spec
        };
        node.lab.pod(spec).unwrap()
    };
    let listed = host("ingress", PodSpec::with_role("", "role-ingress"));
    let unlisted = host("cni", PodSpec::without_role(""));
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let _guard = guard(&node);
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(node.host_dial(&["--to", to]), counts([("node", 1)]), "{to}");
        assert_eq!(dial(&unlisted, &["--to", to]), counts([("node", 1)]), "{to}");
        eventually("a listed one gets its role", || {
            dial(&listed, &["--to", to]) == counts([("role-ingress", 1)])
        });
    }
}

#[test]
fn the_guard_refuses_connections_and_drops_packets() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let arrived = |words: &[&str]| {
        let next_hop = std::fs::read_to_string(format!("/sys/class/net/pod{}/address", a.number()));
        // If the node has a network namespace of its own, this process does not see its interfaces. The packets then
        // go to the broadcast address.
        let next_hop =
            next_hop.map_or_else(|_| "ff:ff:ff:ff:ff:ff".to_owned(), |text| text.trim().to_owned());
        let mut command = a.command(client_binary()).unwrap();
        let output = command
            .args(["craft", "--next-hop", &next_hop])
            .args(words)
            .output()
            .unwrap();
        // If a packet is dropped at its socket, the sender gets an error.
        let was_told = String::from_utf8_lossy(&output.stderr).contains("not permitted");
        assert!(output.status.success() || was_told, "{words:?}: {output:?}");
        recorder.settle(node.lab.node()).unwrap();
        recorder.take_from_others()
    };
    let mut ways: Vec<Vec<&str>> = vec![
        vec!["--method", "raw"],
        vec!["--method", "raw-options"],
        vec!["--method", "raw-fragments"],
        vec!["--method", "raw-tcp"],
        vec!["--method", "raw", "--to", IMDS6],
        vec!["--method", "raw-options", "--to", IMDS6],
        vec!["--method", "raw-tcp", "--to", IMDS6],
    ];
    // Packets of AF_PACKET sockets pass only the programs at the uplinks, which need tcx.
    let has_tcx = KernelVersion::current().unwrap() >= KernelVersion::new(6, 6, 0);
    let sees_next_hop = Path::new(&format!("/sys/class/net/pod{}", a.number())).exists();
    if has_tcx && sees_next_hop {
        ways.push(vec!["--method", "packet"]);
    }
    for way in &ways {
        eventually("nothing stops it yet", || arrived(way) > 0);
    }
    let guard = guard(&node);
    for way in &ways {
        assert_eq!(arrived(way), 0, "{way:?}");
    }
    for (to, mode) in [
        (IMDS, "plain"),
        (MAPPED, "plain"),
        (IMDS6, "plain"),
        (IMDS6, "v6only"),
        (IMDS, "nonblocking"),
        (IMDS, "fastopen"),
    ] {
        assert_eq!(
            dial(&a, &["--to", to, "--mode", mode]),
            counts([(UNREACHABLE, 1)]),
            "{mode} to {to}"
        );
    }
    assert_eq!(recorder.take_from_others(), 0);
    assert_eq!(node.host_dial(&[]), counts([("node", 1)]), "the node itself");
    drop(guard);
    node.assert_nothing_loaded();
    assert!(arrived(&ways[0]) > 0, "nothing stops it any more");
}

#[test]
fn agents_and_guards_work_in_either_order_and_leave_nothing_behind() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let check = |want: &str, what: &str| {
        for to in [IMDS, MAPPED, IMDS6] {
            assert_eq!(dial(&a, &["--to", to]), counts([(want, 1)]), "{what}, {to}");
        }
    };
    let first = guard(&node);
    check(UNREACHABLE, "a guard");
    let mut older = Agent::start(&node.lab, &spec(&node)).unwrap();
    check("role-a", "an agent after it");
    let second = guard(&node);
    drop(first);
    check("role-a", "a guard after that");
    let younger = Agent::start(&node.lab, &spec(&node)).unwrap();
    check("role-a", "two agents");
    assert!(older.stop().unwrap().success());
    check("role-a", "the younger");
    younger.signal(Signal::SIGKILL).unwrap();
    drop(younger);
    check(UNREACHABLE, "the guard that is left");
    second.signal(Signal::SIGKILL).unwrap();
    drop(second);
    node.assert_nothing_loaded();
    check("node", "neither");
}

fn shift_clock(by: i64) {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls get a valid timespec.
    unsafe {
        assert_eq!(libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut now), 0);
        now.tv_sec += by;
        assert_eq!(libc::clock_settime(libc::CLOCK_REALTIME, &raw const now), 0);
    }
}

#[test]
#[ignore = "sets the clock, which only a guest of `cargo xtask vm-test` may have done to it"]
fn credentials_stay_valid_when_the_clock_jumps_by_an_hour() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = Agent::start(&node.lab, &spec(&node)).unwrap();
    let path = ["--path", "/latest/meta-data/iam/security-credentials/role-a"];
    // The credentials must be valid by the client's clock.
    let is_good = || {
        let got = dial(&a, &path);
        let (document, _) = got.first_key_value().unwrap();
        let end = document
            .split_once("\"Expiration\": \"")
            .and_then(|(_, rest)| rest.split('"').next());
        let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
        document.contains("Success") && end.is_some_and(|end| end > now.as_str())
    };
    eventually("a session", is_good);
    for jump in [3600, -3600, -3600, 3600] {
        shift_clock(jump);
        eventually("it is good by the new time", is_good);
        assert_eq!(dial(&a, &[]), counts([("role-a", 1)]), "after {jump} s");
    }
}
