//! Hundreds of crashes, and ten upgrades. The tests check what pods see meanwhile, and that nothing is left behind.

use std::time::Duration;

use crate::common::{agent_binary, counts, dial, eventually, node, node_alone, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::leftovers::snapshot;
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::recorder::Recorder;
use nix::sys::signal::Signal;
use rstest::rstest;

/// The number of times that an agent is killed.
const KILLS: usize = 100;

/// The number of kills during one continuous load of requests.
const BATCH: usize = 10;

/// Random times at which processes are killed. They differ in each run. `METAPROXY_TEST_SEED` repeats those of an
/// earlier run.
struct KillTimes(fastrand::Rng);

impl KillTimes {
    fn new() -> Self {
        let seed = std::env::var_os("METAPROXY_TEST_SEED");
        let seed = seed.map_or_else(
            || fastrand::u64(..),
            |seed| seed.to_string_lossy().parse().unwrap(),
        );
        println!("METAPROXY_TEST_SEED={seed}");
        Self(fastrand::Rng::with_seed(seed))
    }

    fn below(&mut self, limit: u64) -> Duration {
        Duration::from_millis(self.0.u64(..limit))
    }
}

/// The agent is killed while it loads and attaches its programs, while it serves, or while it drains. A pod sends
/// requests all the time.
#[rstest]
#[case::with_a_guard(true)]
#[case::without_a_guard(false)]
fn an_agent_that_is_killed_100_times_at_random_moments_leaves_nothing_behind(#[case] guarded: bool) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let before = snapshot(node.lab.node()).unwrap();
    node.assert_nothing_loaded();
    let mut guard = guarded.then(|| node.closed_guard());
    let of_guard = node.loaded().len();
    let guards: Vec<u32> = guard.iter().map(Agent::pid).collect();
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let (mut served, mut times) = (0, KillTimes::new());
    for batch in 0..KILLS / BATCH {
        let load = start_dial(
            &a,
            &[
                "--seconds",
                "4",
                "--threads",
                "2",
                "--timeout",
                "300",
                "--pause",
                "2",
            ],
        );
        for round in 0..BATCH {
            let mut agent = Agent::spawn(&node.lab, &node.spec()).unwrap();
            let lives = times.below(600);
            std::thread::sleep(lives);
            if round % 4 == 0 {
                agent.signal(Signal::SIGTERM).unwrap();
                std::thread::sleep(times.below(300));
            }
            agent.signal(Signal::SIGKILL).unwrap();
            agent.wait().unwrap();
            println!("batch {batch}, round {round}, killed after {lives:?}");
            node.assert_nothing_loaded_beside(&guards);
            eventually("the guard has what it had", || node.loaded().len() == of_guard);
        }
        let got = outcomes(load);
        served += got.get("role-a").copied().unwrap_or_default();
        assert!(!guarded || !got.contains_key("node"), "batch {batch}: {got:?}");
    }
    assert!(served > 0, "the agent lived long enough to serve");
    if let Some(guard) = &mut guard {
        assert_eq!(recorder.take_from_others(), 0, "while the guard lived");
        assert_eq!(node.imds.seen_from_pods(), []);
        assert!(of_guard > 0, "what is looked for can be found");
        guard.signal(Signal::SIGKILL).unwrap();
        guard.wait().unwrap();
    } else {
        assert!(
            recorder.take_from_others() > 0,
            "without a guard it would be seen"
        );
    }
    node.assert_nothing_loaded();
    assert_eq!(snapshot(node.lab.node()).unwrap(), before);
    let _agent = node.agent();
    assert_eq!(
        dial(&a, &["--count", "10"]),
        counts([("role-a", 10)]),
        "the next start works"
    );
}

#[test]
fn ten_upgrades_at_500_requests_a_second_fail_no_request_and_let_none_reach_the_node() {
    let Some(node) = node_alone() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let recorder = Recorder::start(node.lab.aws()).unwrap();
    let mut agent = node.agent();
    // The load must last longer than ten upgrades take.
    let words = ["--count", "8000", "--threads", "5", "--pause", "14"];
    let loads = [start_dial(&a, &words), start_dial(&b, &words)];
    let begun = std::time::Instant::now();
    for _ in 0..10 {
        let next = node.agent();
        assert!(agent.stop().unwrap().success());
        agent = next;
    }
    let took = begun.elapsed().as_secs_f64();
    let [mut of_a, mut of_b] = loads;
    assert!(
        of_a.try_wait().unwrap().is_none() && of_b.try_wait().unwrap().is_none(),
        "pods ask through all ten"
    );
    let [of_a, of_b] = [of_a, of_b].map(outcomes);
    assert_eq!(of_a.keys().collect::<Vec<_>>(), ["role-a"], "{of_a:?}");
    assert_eq!(of_b.keys().collect::<Vec<_>>(), ["role-b"], "{of_b:?}");
    let asked: usize = of_a.values().chain(of_b.values()).sum();
    println!("{asked} requests; ten upgrades took {took:.1} s of the time");
    assert_eq!(recorder.take_from_others(), 0);
}

#[test]
fn agent_and_guard_that_are_killed_together_leave_nothing_behind() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let before = snapshot(node.lab.node()).unwrap();
    for _ in 0..5 {
        let agent = node.agent();
        let guard = Agent::guard(&node.lab, agent_binary(), &[]).unwrap();
        guard.wait_for("guard closed").unwrap();
        assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
        for process in [agent, guard] {
            process.signal(Signal::SIGKILL).unwrap();
        }
        node.assert_nothing_loaded();
        assert_eq!(snapshot(node.lab.node()).unwrap(), before);
        assert_eq!(
            dial(&a, &[]),
            counts([("node", 1)]),
            "as if it had never been there"
        );
    }
}
