//! Floods of the listener by one pod: a neighbour's new connections are served within the second that SDKs wait.

use std::time::Duration;

use crate::common::attackers::{Attacker, assert_ready, unlimited_agent};
use crate::common::identity::{REFUSED, assert_only, v4_listener};
use crate::common::{Node, counts, dial, eventually_within, node_alone, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};
use nix::sys::signal::Signal;
use rstest::rstest;

/// A neighbour's connections of one look.
const CONNECTIONS: usize = 150;

/// Until a SYN queue that was full takes SYNs again: without room the kernel sends a SYN-ACK but a few times.
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
        // Where a pod's own rate does not hold a flood back.
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

    /// As a node may be set up, for connections from now on.
    fn set(&self, syncookies: &str, timestamps: &str) {
        let netns = self.node.lab.node();
        netns.sysctl("net/ipv4/tcp_syncookies", syncookies).unwrap();
        let pods = [&self.bad, &self.neighbour].map(|pod| pod.netns().unwrap());
        for netns in pods.into_iter().chain([netns]) {
            netns.sysctl("net/ipv4/tcp_timestamps", timestamps).unwrap();
        }
    }

    /// Milliseconds of the slowest in a hundred, and what did not get the role within a second.
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

    /// As on a node that does not filter by source; what answers them is answered neither by a reset nor by an error.
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
    /// By a raw socket, from addresses that never answer.
    SpoofedSyns,
    /// By connect() with a filter that drops the listener's answer; no capability is needed.
    HalfOpen,
    /// The same, and the agent takes a pod's connections at every rate.
    HalfOpenUnlimited,
    /// Connected and reset as fast as possible.
    Connects,
    /// The same, and the agent takes a pod's connections at every rate.
    ConnectsUnlimited,
    /// Connected and held, and made anew when closed.
    Held,
}

impl Flood {
    fn counter(self) -> &'static str {
        match self {
            Self::SpoofedSyns | Self::HalfOpenUnlimited => "sent",
            _ => "tried",
        }
    }

    /// Where its counter is before the neighbour is looked at. A SYN queue of 4,096 is full after that many SYNs.
    fn first_look(self) -> u64 {
        match self {
            Self::SpoofedSyns => 10_000,
            Self::HalfOpenUnlimited => 6_000,
            _ => 1_000,
        }
    }
}

/// `tcp_syncookies` 1 is Linux's default, with 2 every handshake is answered by a cookie.
#[rstest]
fn a_neighbours_new_connections_are_all_served_beside_a_flood(
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

/// Clients whose handshake is complete send their first packet again and again until the listener takes it.
#[rstest]
fn connections_that_are_made_while_the_accept_queue_is_full_are_served_as_themselves(
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

/// Without cookies a full SYN queue loses what comes, a neighbour's SYNs too: `tcp_syncookies` 0 is nowhere the
/// default. No neighbour is served as another pod meanwhile, and nothing of it outlasts the flood.
#[rstest]
#[case::by_raw_sockets(Flood::SpoofedSyns)]
#[case::by_connect(Flood::HalfOpen)]
fn without_syncookies_a_neighbour_is_served_after_a_flood_at_the_latest(#[case] flood: Flood) {
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
    // As long as the kernel keeps what was half open when it is short of room.
    eventually_within(RECOVERY_TIMEOUT, "a neighbour is served after the flood", || {
        dial(&scene.neighbour, &words) == all
    });
    assert_ready(&scene.node);
}
