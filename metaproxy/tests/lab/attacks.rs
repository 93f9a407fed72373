//! Attacks on the identification of callers, each by a real program within a pod. During and after an attack, every
//! other pod gets its own role.
//!
//! `METAPROXY_TEST_REQUESTS` sets the number of the victims' requests during each attack, such as 200000.

use crate::common::attackers::{
    Attacker, assert_all_served, assert_nothing_is_left, requests, scaled, unlimited_agent,
};
use crate::common::identity::v4_listener;
use crate::common::{Node, counts, dial, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;

struct Scene {
    node: Node,
    thief: Pod,
    victim: Pod,
    neighbour: Pod,
    agent: Agent,
}

impl Scene {
    fn new() -> Option<Self> {
        let node = node()?;
        let pod = |name, role| node.lab.pod(PodSpec::with_role(name, role)).unwrap();
        let (thief, victim) = (pod("thief", "role-thief"), pod("victim", "role-victim"));
        let neighbour = pod("neighbour", "role-neighbour");
        let agent = unlimited_agent(&node);
        Some(Self {
            thief,
            victim,
            neighbour,
            agent,
            node,
        })
    }

    fn v4(&self) -> String {
        v4_listener(&self.agent)
    }

    fn v6(&self) -> String {
        let listeners = self.agent.listeners().unwrap();
        listeners
            .iter()
            .find(|address| address.is_ipv6())
            .unwrap()
            .to_string()
    }

    /// Asserts that other pods get their own roles before, during and after an attack. The requests during the attack
    /// begin when `counter` has reached `value`.
    fn assert_harmless(mut self, words: &[&str], counter: &str, value: usize) {
        let victims = [(&self.victim, "role-victim"), (&self.neighbour, "role-neighbour")];
        assert_all_served(&victims, 20, "before the attack");
        let mut attacker = Attacker::start(&self.thief, words);
        attacker.wait_for(counter, scaled(value) as u64);
        attacker.during(counter, || {
            assert_all_served(&victims, requests(10_000), "during the attack");
        });
        println!("the attack: {:?}", attacker.end());
        assert_nothing_is_left(&self.node, &mut self.agent, &victims);
        assert_eq!(self.node.imds.seen_from_pods(), []);
    }
}

/// The attacker has the capabilities that containers have by default. Its sockets are bound to `lo`, and it sends the
/// listener's answers to them through a raw socket.
#[rstest]
#[case::held("70000")]
#[case::closed_and_made_anew("100")]
fn connections_that_a_pod_answers_by_a_raw_socket_change_nothing_for_others(#[case] hold: &str) {
    let Some(scene) = Scene::new() else { return };
    let listener = scene.v4();
    let words = [
        "--privileges",
        "default",
        "answer-raw",
        "--listener",
        &listener,
        "--hold",
        hold,
    ];
    scene.assert_harmless(&words, "established", 70_000);
}

/// The attacker has no capability. In a user namespace of its own it assigns the listener's address to `lo`.
#[rstest]
#[case::held_v4(true, "10000", "20000")]
#[case::closed_and_made_anew_v4(true, "10", "20000")]
#[case::held_v6(false, "10000", "20000")]
fn connections_that_a_pod_without_capabilities_answers_in_a_namespace_of_its_own_change_nothing_for_others(
    #[case] is_v4: bool,
    #[case] hold: &str,
    #[case] rate: &str,
) {
    let Some(scene) = Scene::new() else { return };
    let listener = if is_v4 { scene.v4() } else { scene.v6() };
    let words = [
        "--privileges",
        "none",
        "answer-in-namespace",
        "--listener",
        &listener,
        "--hold",
        hold,
        "--rate",
        rate,
    ];
    scene.assert_harmless(&words, "established", 10_000);
}

/// The thief uses the victim's addresses and ports on connections that never leave the thief's namespace. It holds
/// them, or closes and reopens them alternately with the victim's connections.
#[rstest]
#[case::all_ports_held("25000", "25000", 25_000)]
#[case::few_ports_closed_and_made_anew("64", "16", 10_000)]
#[case::every_port_closed_and_made_anew("25000", "1", 10_000)]
fn a_victim_whose_address_and_ports_a_pod_without_capabilities_uses_is_served_as_itself(
    #[case] ports: &str,
    #[case] hold: &str,
    #[case] established: usize,
) {
    let Some(scene) = Scene::new() else { return };
    let (listener, source) = (scene.v4(), format!("{}:40000", scene.victim.ip()));
    let words = [
        "--privileges",
        "none",
        "answer-in-namespace",
        "--listener",
        &listener,
        "--source",
        &source,
        "--ports",
        ports,
        "--hold",
        hold,
    ];
    scene.assert_harmless(&words, "established", established);
}

/// The thief has the victim's address on its own interface, is root in its namespace, and answers its own connections
/// there. In the case `podips_unknown` the manifests name no address, so no check of addresses protects the victim.
#[rstest]
#[case::podips_known(true)]
#[case::podips_unknown(false)]
fn a_victim_is_never_served_the_session_of_a_thief_with_the_same_address(#[case] known: bool) {
    let Some(node) = node() else { return };
    let spec = |name, role: &str| PodSpec {
        reported_ips: (!known).then(Vec::new),
        ..PodSpec::with_role(name, role)
    };
    let victim = node.lab.pod(spec("victim", "role-victim")).unwrap();
    let thief = node
        .lab
        .pod(PodSpec {
            same_address_as: Some(victim.number()),
            ..spec("thief", "role-thief")
        })
        .unwrap();
    let mut agent = unlimited_agent(&node);
    let (listener, source) = (v4_listener(&agent), format!("{}:40000", victim.ip()));
    let words = [
        "answer-in-namespace",
        "--here",
        "--listener",
        &listener,
        "--source",
        &source,
        "--ports",
        "5000",
        "--hold",
        "1",
    ];
    let victims = [(&victim, "role-victim")];
    let mut attacker = Attacker::start(&thief, &words);
    attacker.wait_for("established", scaled(5_000) as u64);
    attacker.during("established", || {
        assert_all_served(&victims, requests(10_000), "during the attack");
    });
    println!("the attack: {:?}", attacker.end());
    assert_nothing_is_left(&node, &mut agent, &victims);
}

/// The thief connects to the listener from the victim's address and ports, so that SYNs of both meet at the listener.
/// The answers go to the victim. TCP makes the two wait for each other: some of the victim's connections fail, and
/// none gets another pod's role.
#[test]
fn a_victim_whose_syns_meet_those_of_a_thief_with_the_same_address_is_never_served_as_it() {
    let Some(node) = node() else { return };
    let unknown = |name, role: &str| PodSpec {
        reported_ips: Some(Vec::new()),
        ..PodSpec::with_role(name, role)
    };
    let victim = node.lab.pod(unknown("victim", "role-victim")).unwrap();
    let thief = node
        .lab
        .pod(PodSpec {
            same_address_as: Some(victim.number()),
            ..unknown("thief", "role-thief")
        })
        .unwrap();
    let _agent = unlimited_agent(&node);
    let source = format!("{}:40000", victim.ip());
    let mut spray = crate::common::start_dial(
        &thief,
        &[
            "--source",
            &source,
            "--sweep",
            "--seconds",
            "600",
            "--threads",
            "4",
            "--timeout",
            "20",
        ],
    );
    let count = requests(5_000);
    let words = [
        "--source",
        &source,
        "--sweep",
        "--count",
        &count.to_string(),
        "--threads",
        "4",
        "--timeout",
        "500",
    ];
    let got = dial(&victim, &words);
    crate::common::end_running(&mut spray);
    crate::common::identity::assert_only(
        &got,
        &[&crate::common::identity::REFUSED[..], &["role-victim"]].concat(),
        "the victim",
    );
    let served = got.get("role-victim").copied().unwrap_or_default();
    assert!(served > count * 8 / 10, "served {served} of {count}: {got:?}");
    assert_eq!(dial(&victim, &["--count", "50"]), counts([("role-victim", 50)]));
}
