//! One pod floods the listener. A neighbour's new connections must be served within the second that SDKs wait.

use std::time::Duration;

use crate::common::attackers::{Attacker, assert_ready, unlimited_agent};
use crate::common::identity::{REFUSED, assert_only, v4_listener};
use crate::common::{Node, counts, dial, eventually_within, node_alone, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};
use nix::sys::signal::Signal;
use rstest::rstest;

/// The number of the neighbour's connections in one measurement.
const CONNECTIONS: usize = 150;

/// The maximum time until a full SYN queue accepts SYNs again. Without room in the queue, the kernel retransmits a
/// SYN-ACK only a few times.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);

struct Scene {
    node: Node,
    bad: Pod,
    neighbour: Pod,
    agent: Agent,
}

impl Scene {
    fn new(flood: Flood) -> Option<Self> {
        let node = node_alone()?;
        let bad = node.lab.pod(PodSpec::with_role("bad", "role-bad")).unwrap();
        let neighbour = node
            .lab
            .pod(PodSpec::with_role("neighbour", "role-neighbour"))
            .unwrap();
        // In these floods, no rate limit of the pod holds the flood back.
        let agent = match flood {
            Flood::HalfOpenUnlimited | Flood::ConnectsUnlimited => unlimited_agent(&node),
            _ => node.agent(),
        };
        Some(Self {
            node,
            bad,
            neighbour,
            agent,
        })
    }

    /// Sets sysctls of the node and of the pods, for connections from now on.
    fn set(&self, syncookies: &str, timestamps: &str) {
        let netns = self.node.lab.node();
        netns.sysctl("net/ipv4/tcp_syncookies", syncookies).unwrap();
        let pods = [&self.bad, &self.neighbour].map(|pod| pod.netns().unwrap());
        for netns in pods.into_iter().chain([netns]) {
            netns.sysctl("net/ipv4/tcp_timestamps", timestamps).unwrap();
        }
    }

    /// Measures the neighbour's connections. Returns the 99th percentile in milliseconds, and the outcomes of those
    /// that did not get the role within a second.
    fn look(&self) -> (u64, Vec<(String, usize)>) {
        let count = CONNECTIONS.to_string();
        let words = [
            "--count",
            &count,
            "--threads",
            "2",
            "--pause",
            "4",
            "--time",
            "--timeout",
            "1000",
        ];
        let (mut times, mut others) = (Vec::new(), Vec::new());
        for (outcome, count) in dial(&self.neighbour, &words) {
            let time = outcome
                .strip_prefix("role-neighbour after ")
                .and_then(|rest| rest.strip_suffix(" ms"))
                .map(|time| time.parse::<u64>().unwrap());
            match time {
                Some(time) if time <= 1000 => times.extend(std::iter::repeat_n(time, count)),
                _ => others.push((outcome, count)),
            }
        }
        times.sort_unstable();
        (times.get(times.len() * 99 / 100).copied().unwrap_or(1000), others)
    }

    fn flood(&self, flood: Flood) -> Attacker {
        let listener = v4_listener(&self.agent);
        let none = ["--privileges", "none"];
        let words = match flood {
            Flood::SpoofedSyns => {
                self.let_spoofed_packets_in();
                let words = [
                    "--privileges",
                    "default",
                    "syn-flood",
                    "--listener",
                    &listener,
                    "--source",
                    "198.18.0.0",
                ];
                words.to_vec()
            }
            Flood::HalfOpen | Flood::HalfOpenUnlimited => {
                [&none[..], &["half-open", "--hold", "8000"]].concat()
            }
            Flood::Connects | Flood::ConnectsUnlimited => [&none[..], &["connect"]].concat(),
            Flood::Held => [&none[..], &["hold", "--hold", "5000"]].concat(),
        };
        let mut attacker = Attacker::start(&self.bad, &words);
        attacker.wait_for(flood.counter(), flood.first_look());
        attacker
    }

    /// Lets packets with spoofed sources in, as a node that does not filter by source does. The route makes sure that
    /// the answers to these packets cause neither a reset nor an error.
    fn let_spoofed_packets_in(&self) {
        let route = ["route", "replace", "198.18.0.0/16", "via", "10.200.0.2"];
        assert!(
            self.node
                .host_command("ip")
                .args(route)
                .status()
                .unwrap()
                .success()
        );
        for device in ["all", &format!("pod{}", self.bad.number())] {
            let name = format!("net/ipv4/conf/{device}/rp_filter");
            self.node.lab.node().sysctl(&name, "0").unwrap();
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Flood {
    /// SYNs from a raw socket, with source addresses that never answer.
    SpoofedSyns,
    /// connect() with a socket filter that drops the listener's answer. This needs no capability.
    HalfOpen,
    /// `HalfOpen`, and the agent does not limit a pod's rate of connections.
    HalfOpenUnlimited,
    /// Connections that are established and reset as fast as possible.
    Connects,
    /// `Connects`, and the agent does not limit a pod's rate of connections.
    ConnectsUnlimited,
    /// Connections that are established and held, and replaced when they are closed.
    Held,
}

impl Flood {
    fn counter(self) -> &'static str {
        match self {
            Self::SpoofedSyns | Self::HalfOpenUnlimited => "sent",
            _ => "tried",
        }
    }

    /// Returns the counter's value from which on the neighbour is measured. A SYN queue of 4,096 entries is full
    /// after 4,096 SYNs.
    fn first_look(self) -> u64 {
        match self {
            Self::SpoofedSyns => 10_000,
            Self::HalfOpenUnlimited => 6_000,
            _ => 1_000,
        }
    }
}

/// `tcp_syncookies` 1 is Linux's default. With 2, the kernel answers every handshake with a cookie.
#[rstest]
fn a_neighbours_new_connections_are_all_served_during_a_flood(
    #[values(
        Flood::SpoofedSyns,
        Flood::HalfOpen,
        Flood::HalfOpenUnlimited,
        Flood::Connects,
        Flood::ConnectsUnlimited,
        Flood::Held
    )]
    flood: Flood,
    #[values("1", "2")] syncookies: &str,
) {
    let Some(scene) = Scene::new(flood) else { return };
    for timestamps in ["1", "0"] {
        scene.set(syncookies, timestamps);
        let (quiet, failed) = scene.look();
        assert!(failed.is_empty(), "quiet: {failed:?}");
        let mut attacker = scene.flood(flood);
        let (loaded, failed) = attacker.during(flood.counter(), || scene.look());
        let counters = attacker.end();
        println!(
            "{flood:?}, tcp_syncookies {syncookies}, tcp_timestamps {timestamps}: slowest in a hundred {quiet} ms quiet, \
             {loaded} ms beside it ({:.1} times); {counters:?}",
            loaded as f64 / quiet.max(1) as f64
        );
        assert!(failed.is_empty(), "{flood:?}: {failed:?}");
    }
    assert_ready(&scene.node);
}

/// A client whose handshake is complete retransmits its first packet until the listener accepts it.
#[rstest]
fn connections_made_while_the_accept_queue_is_full_get_their_own_pods_role(
    #[values("0", "1", "2")] syncookies: &str,
) {
    let Some(scene) = Scene::new(Flood::Held) else {
        return;
    };
    scene.set(syncookies, "1");
    for _ in 0..2 {
        scene.agent.signal(Signal::SIGSTOP).unwrap();
        let words = ["--privileges", "none", "hold", "--hold", "6000"];
        let mut attacker = Attacker::start(&scene.bad, &words);
        attacker.wait_for("connected", 4_000);
        let words = ["--count", "60", "--threads", "60", "--timeout", "8000", "--time"];
        let asking = start_dial(&scene.neighbour, &words);
        std::thread::sleep(Duration::from_millis(500));
        scene.agent.signal(Signal::SIGCONT).unwrap();
        let got = outcomes(asking);
        println!("{got:?}; {:?}", attacker.end());
        assert!(
            got.keys()
                .all(|outcome| outcome.starts_with("role-neighbour after ")),
            "{got:?}"
        );
        assert_eq!(got.values().sum::<usize>(), 60);
    }
    assert_eq!(
        dial(&scene.neighbour, &["--count", "50"]),
        counts([("role-neighbour", 50)])
    );
    assert_ready(&scene.node);
}

/// Without cookies the kernel drops every SYN while the SYN queue is full, a neighbour's too. `tcp_syncookies` 0 is
/// no system's default. During the flood a neighbour never gets another pod's role, and after the flood it is served
/// again.
#[rstest]
#[case::by_raw_sockets(Flood::SpoofedSyns)]
#[case::by_connect(Flood::HalfOpen)]
fn without_syncookies_a_neighbour_is_served_at_the_latest_after_a_flood(#[case] flood: Flood) {
    let Some(scene) = Scene::new(flood) else { return };
    scene.set("0", "1");
    let mut attacker = scene.flood(flood);
    let words = ["--count", "60", "--threads", "30", "--timeout", "1000"];
    let got = attacker.during(flood.counter(), || dial(&scene.neighbour, &words));
    println!("{flood:?}: {got:?}; {:?}", attacker.end());
    assert_only(
        &got,
        &[&REFUSED[..], &["role-neighbour"]].concat(),
        "the neighbour",
    );
    let all = counts([("role-neighbour", 20)]);
    let words = ["--count", "20", "--threads", "20", "--timeout", "1000"];
    // The SYN queue stays full until the kernel has dropped the half-open connections.
    eventually_within(RECOVERY_TIMEOUT, "a neighbour is served after the flood", || {
        dial(&scene.neighbour, &words) == all
    });
    assert_ready(&scene.node);
}
