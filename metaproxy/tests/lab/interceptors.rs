//! Programs that receive another pod's packets, or change packets on the way. They never get that pod's role.

use std::net::SocketAddr;

use crate::common::attackers::{Attacker, CLOSED, assert_ready, requests, unlimited_agent};
use crate::common::identity::{REFUSED, assert_only, v4_listener};
use crate::common::nested::{Nested, nft};
use crate::common::{Node, counts, dial, eventually, node, start_dial};
use metaproxy_lab::bpf_conflicts::ConnectProgram;
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;

/// A victim whose packets to the listener reach the attacker instead. The cause is a rule of the node, as the portmap
/// plugin makes it for `hostPort`. The attacker's own connections reach the listener.
struct Intercepted {
    node: Node,
    attacker: Pod,
    victim: Pod,
    _agent: metaproxy_lab::agent::Agent,
    listener: String,
    front: String,
}

impl Intercepted {
    fn new(known: bool) -> Option<Self> {
        let node = node()?;
        let attacker = node
            .lab
            .pod(PodSpec::with_role("attacker", "role-attacker"))
            .unwrap();
        let spec = PodSpec {
            reported_ips: (!known).then(Vec::new),
            ..PodSpec::with_role("victim", "role-victim")
        };
        let victim = node.lab.pod(spec).unwrap();
        let agent = unlimited_agent(&node);
        assert_eq!(dial(&victim, &["--count", "20"]), counts([("role-victim", 20)]));
        let listener = v4_listener(&agent);
        let front = format!("{}:8080", attacker.ip());
        let at: SocketAddr = listener.parse().unwrap();
        let rules = format!(
            "table ip portmap {{ chain pre {{ type nat hook prerouting priority dstnat; iifname pod{} ip daddr {} tcp \
             dport {} dnat to {front}; }}; }}",
            victim.number(),
            at.ip(),
            at.port(),
        );
        nft(node.host_command("nft"), &rules);
        Some(Self {
            node,
            attacker,
            victim,
            _agent: agent,
            listener,
            front,
        })
    }

    /// Starts an attack with the arguments that all attacks of this scene have.
    fn attack(&self, kind: &[&str], more: &[&str]) -> Attacker {
        let own = self.attacker.ip().to_string();
        let words = [
            &["--privileges", "default"],
            kind,
            &[
                "--device",
                "eth0",
                "--front",
                &self.front,
                "--listener",
                &self.listener,
                "--own",
                &own,
            ],
            more,
        ];
        let mut attacker = Attacker::start(&self.attacker, &words.concat());
        attacker.wait_for("ready", 1);
        attacker
    }

    /// Removes the rule, and asserts that the victim is served as before.
    fn assert_victim_recovers(&self) {
        nft(self.node.host_command("nft"), "delete table ip portmap");
        assert_eq!(
            dial(&self.victim, &["--count", "20"]),
            counts([("role-victim", 20)])
        );
        assert_ready(&self.node);
    }
}

/// Both ends see each other's sequence numbers, so the option matches them. Only the client's address differs.
#[rstest]
#[case::podips_known(true)]
#[case::podips_unknown(false)]
fn a_relay_of_packets_is_never_answered_as_the_victim(#[case] known: bool) {
    let Some(scene) = Intercepted::new(known) else {
        return;
    };
    let mut relay = scene.attack(&["relay"], &[]);
    let count = requests(200).min(5_000);
    let words = [
        "--count",
        &count.to_string(),
        "--threads",
        "8",
        "--timeout",
        "1500",
    ];
    let got = dial(&scene.victim, &words);
    assert_only(&got, &REFUSED, "the victim behind the relay");
    relay.wait_for("options", count as u64);
    relay.wait_for("handshakes", count as u64);
    let counters = relay.end();
    println!("the relay: {counters:?}");
    assert_eq!(counters.get("answers"), None, "{counters:?}");
    scene.assert_victim_recovers();
}

/// The kernel relays the packets: the attacker's namespace forwards them and translates their addresses.
#[rstest]
#[case::podips_known(true)]
#[case::podips_unknown(false)]
fn a_relay_by_nat_rules_in_the_attackers_namespace_is_never_answered_as_the_victim(#[case] known: bool) {
    let Some(scene) = Intercepted::new(known) else {
        return;
    };
    let netns = scene.attacker.netns().unwrap();
    netns.sysctl("net/ipv4/ip_forward", "1").unwrap();
    let rules = format!(
        "table ip relay {{ chain pre {{ type nat hook prerouting priority dstnat; tcp dport 8080 counter dnat to {}; }}; \
         chain post {{ type nat hook postrouting priority srcnat; oifname eth0 masquerade; }}; }}",
        scene.listener
    );
    nft(scene.attacker.command("nft").unwrap(), &rules);
    let words = ["--count", "200", "--threads", "8", "--timeout", "1500"];
    let got = dial(&scene.victim, &words);
    assert_only(&got, &CLOSED, "reached the listener, which closed");
    scene.assert_victim_recovers();
}

/// The attacker records the option in a victim's handshake, and replays it on connections with the same initial
/// sequence number of the client. `METAPROXY_TEST_REQUESTS` sets the number of these connections, up to 20,000. The
/// victim must see the listener's own SYN-ACK, because it would not send the option otherwise.
#[test]
fn a_recorded_option_is_never_answered_as_the_victim_from_another_address() {
    let Some(scene) = Intercepted::new(true) else {
        return;
    };
    let tries = requests(2_000).min(20_000) as u64;
    let mut replay = scene.attack(&["replay"], &["--tries", "500"]);
    let words = ["--seconds", "600", "--threads", "1", "--timeout", "300"];
    let mut asking = start_dial(&scene.victim, &words);
    replay.wait_for("closed", tries / 2 + 1);
    replay.wait_for("handshakes", tries);
    crate::common::end_running(&mut asking);
    let counters = replay.end();
    println!("the replay: {counters:?}");
    let count = |counter: &str| counters.get(counter).copied().unwrap_or_default();
    assert!(count("options") >= tries / 500, "{counters:?}");
    assert_eq!(count("answers"), 0, "{counters:?}");
    scene.assert_victim_recovers();
}

/// If the SYN-ACK lacks the listener's tags, a client sends its request without the option.
#[test]
fn a_program_that_answers_in_the_listeners_place_is_not_shown_the_option() {
    let Some(scene) = Intercepted::new(true) else {
        return;
    };
    let mut replay = scene.attack(&["replay", "--alone"], &[]);
    let words = ["--count", "100", "--threads", "10", "--timeout", "300"];
    let got = dial(&scene.victim, &words);
    assert_only(&got, &REFUSED, "the victim");
    replay.wait_for("requests", 100);
    let counters = replay.end();
    println!("in the listener's place: {counters:?}");
    assert_eq!(counters.get("options"), None, "{counters:?}");
    scene.assert_victim_recovers();
}

/// A program that runs after ours redirects connections at `connect()`, as socket load balancers (Cilium) do for host
/// ports and for external addresses of Services.
#[test]
fn a_connection_that_a_socket_load_balancer_sends_elsewhere_shows_no_option_and_is_reported_by_name() {
    let Some(node) = node() else { return };
    let attacker = node
        .lab
        .pod(PodSpec::with_role("attacker", "role-attacker"))
        .unwrap();
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let agent = node.agent();
    assert_eq!(dial(&victim, &[]), counts([("role-victim", 1)]));
    let (own, front) = (attacker.ip().to_string(), format!("{}:8080", attacker.ip()));
    let listener = v4_listener(&agent);
    let words = ["--privileges", "default", "replay", "--alone", "--device", "eth0"];
    let places = ["--front", &front, "--listener", &listener, "--own", &own];
    let mut replay = Attacker::start(&attacker, &[&words[..], &places].concat());
    replay.wait_for("ready", 1);
    let translates = ConnectProgram::translate(
        &node.lab.cgroup(),
        listener.parse().unwrap(),
        front.parse().unwrap(),
    )
    .unwrap();
    let words = ["--count", "100", "--threads", "10", "--timeout", "300"];
    assert_only(&dial(&victim, &words), &REFUSED, "the victim");
    replay.wait_for("requests", 100);
    let counters = replay.end();
    println!("behind the load balancer: {counters:?}");
    assert_eq!(counters.get("options"), None, "{counters:?}");
    let line = agent.wait_for("kind=\"answered_elsewhere\"").unwrap();
    assert!(line.contains("pod apps/victim"), "{line}");
    drop(translates);
    eventually("the program is gone", || {
        dial(&victim, &[]) == counts([("role-victim", 1)])
    });
}

/// The pod forwards the packets of a process in a nested namespace, and alters their options. The process gets the
/// pod's own role or is refused. It never gets the role of the pod whose cgroup the options claim.
#[rstest]
#[case::unaltered("as-is", true, false)]
#[case::without_the_option("removed", false, true)]
#[case::claiming_the_victims_cgroup("forged", false, true)]
#[case::claiming_the_victims_cgroup_in_another_option_before("forged-before", false, false)]
#[case::another_option_of_this_kind_before("short-before", false, false)]
#[case::another_option_of_this_kind_behind("short-behind", false, false)]
#[case::the_option_again_cut_off("cut-behind", false, false)]
#[case::foreign_options_before("foreign-before", true, false)]
#[case::the_end_of_the_options_before("end-before", false, true)]
#[case::an_option_that_is_too_long_before("too-long-before", false, true)]
#[case::an_option_without_length_before("empty-before", false, true)]
fn options_that_were_altered_on_the_way_are_right_or_refused(
    #[case] how: &str,
    #[case] is_served: bool,
    #[case] is_refused: bool,
) {
    use std::os::unix::fs::MetadataExt as _;
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let victim = node.lab.pod(PodSpec::with_role("victim", "role-victim")).unwrap();
    let nested = Nested::of(&node, &a);
    let agent = unlimited_agent(&node);
    let (listener, own) = (v4_listener(&agent), a.ip().to_string());
    let claim = std::fs::metadata(victim.cgroup()).unwrap().ino().to_string();
    let words = [
        "relay",
        "--device",
        "docker0",
        "--front",
        &listener,
        "--listener",
        &listener,
        "--own",
        &own,
        "--options",
        how,
        "--claim",
        &claim,
    ];
    let mut relay = Attacker::start(&a, &words);
    relay.wait_for("ready", 1);
    let got = nested.dial(&["--count", "40", "--threads", "20", "--timeout", "1500"]);
    println!("{how}: {got:?}");
    relay.wait_for("options", 40);
    relay.end();
    if is_served {
        assert_eq!(got, counts([("role-a", 40)]));
    } else {
        let allowed: &[&str] = if is_refused { &[] } else { &["role-a"] };
        assert_only(&got, &[&REFUSED[..], allowed].concat(), "right or refused");
    }
    assert_eq!(dial(&victim, &["--count", "20"]), counts([("role-victim", 20)]));
}
