//! Programs that attack from within a pod. Their counters show a test that the attack takes place.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::Pod;
use nix::sys::signal::{Signal, kill};

use super::{Node, Outcomes, agent_binary, client_binary, counts, eventually, outcomes, start_dial};

/// The outcomes of a connection that the agent closes without an answer.
pub const CLOSED: [&str; 3] = [
    "no answer",
    "error ECONNRESET: Connection reset by peer",
    "error EPIPE: Broken pipe",
];

/// The maximum time that an attack takes until a counter reaches a value.
const START_TIMEOUT: Duration = Duration::from_secs(30);

type Counters = BTreeMap<String, u64>;

/// A running `metaproxy-lab attack`, which prints its counters. Dropping this value kills the process.
pub struct Attacker {
    child: Child,
    counters: Arc<Mutex<Counters>>,
}

impl Attacker {
    /// Starts an attack in a pod.
    pub fn start(pod: &Pod, words: &[&str]) -> Self {
        Self::spawn(pod.command(client_binary()).unwrap(), words)
    }

    /// Starts an attack with this command.
    pub fn spawn(mut command: Command, words: &[&str]) -> Self {
        let mut child = command
            .arg("attack")
            .args(words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let counters = Arc::new(Mutex::new(Counters::new()));
        std::thread::spawn({
            let counters = Arc::clone(&counters);
            move || {
                for line in lines.map_while(Result::ok) {
                    let latest = serde_json::from_str(&line).unwrap();
                    *counters.lock().unwrap_or_else(PoisonError::into_inner) = latest;
                }
            }
        });
        Self { child, counters }
    }

    /// Returns a counter's value, which is at most 50 ms old.
    pub fn count(&self, counter: &str) -> u64 {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.get(counter).copied().unwrap_or_default()
    }

    /// Waits until a counter has reached a value.
    pub fn wait_for(&mut self, counter: &str, value: u64) {
        let start = Instant::now();
        while self.count(counter) < value {
            self.assert_runs();
            let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(
                start.elapsed() < START_TIMEOUT,
                "the attack did not come to {counter} {value}: {counters:?}"
            );
            drop(counters);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Calls a function during the attack. Asserts that the attack went on meanwhile, which a rising counter shows.
    pub fn during<T>(&mut self, counter: &str, look: impl FnOnce() -> T) -> T {
        let before = self.count(counter);
        let seen = look();
        eventually("the attack goes on", || {
            self.assert_runs();
            self.count(counter) > before
        });
        seen
    }

    fn assert_runs(&mut self) {
        let ended = self.child.try_wait().unwrap();
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(ended.is_none(), "the attack ended: {ended:?} at {counters:?}");
    }

    /// Kills the attack with SIGKILL, as at the end of a container, and returns its counters.
    pub fn end(mut self) -> Counters {
        self.assert_runs();
        // The attack prints its counters every 50 ms, so the last ones arrive within this time.
        std::thread::sleep(Duration::from_millis(60));
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        kill(pid, Signal::SIGKILL).unwrap();
        self.child.wait().unwrap();
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.clone()
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the number of requests of all victims together: `METAPROXY_TEST_REQUESTS`, or else the scaled default, at
/// least 20.
pub fn requests(default: usize) -> usize {
    number("METAPROXY_TEST_REQUESTS").unwrap_or_else(|| scaled(default).max(20))
}

/// Divides the size of an attack by `METAPROXY_TEST_DIVISOR` if that is set, because an emulated machine is a hundred
/// times slower.
pub fn scaled(size: usize) -> usize {
    size.div_ceil(number("METAPROXY_TEST_DIVISOR").unwrap_or(1))
}

fn number(variable: &str) -> Option<usize> {
    std::env::var_os(variable).map(|number| number.to_string_lossy().parse().unwrap())
}

/// Starts an agent whose limits are above the rates of the lab's clients. Each refusal is then a failed
/// identification.
pub fn unlimited_agent(node: &Node) -> Agent {
    let flags = [
        "--max-connection-rate-per-pod",
        "50000",
        "--max-request-rate-per-pod",
        "50000",
        "--max-connections-per-pod",
        "4096",
    ];
    Agent::start(&node.lab, &node.spec().with(&flags)).unwrap()
}

/// Asserts that every pod gets its own role while all pods send requests at the same time from successive source
/// ports.
pub fn assert_all_served(victims: &[(&Pod, &str)], requests: usize, context: &str) {
    let each = requests.div_ceil(victims.len());
    let asking: Vec<_> = victims
        .iter()
        .map(|(pod, _)| (start_dial(pod, &words_of(pod, each).each()), each))
        .collect();
    for ((child, each), (_, role)) in asking.into_iter().zip(victims) {
        assert_eq!(outcomes(child), counts([(role, each)]), "{context}");
    }
}

struct Words(Vec<String>);

impl Words {
    fn each(&self) -> Vec<&str> {
        self.0.iter().map(String::as_str).collect()
    }
}

/// Returns the arguments for connections from successive ports. Each connection is reset at its end, so that its port
/// can be used again at once.
fn words_of(pod: &Pod, count: usize) -> Words {
    let source = format!("{}:40000", pod.ip());
    let count = count.to_string();
    let words = [
        "--source",
        &source,
        "--sweep",
        "--count",
        &count,
        "--threads",
        "4",
    ];
    Words(words.map(str::to_owned).to_vec())
}

/// Asserts that an attack has no effect after its end: victims are served at once, and the agent is ready.
pub fn assert_nothing_is_left(node: &Node, agent: &mut Agent, victims: &[(&Pod, &str)]) {
    assert_all_served(victims, 50 * victims.len(), "after the attack");
    for (pod, role) in victims {
        let got: Outcomes = super::dial(pod, &["--count", "20"]);
        assert_eq!(got, counts([(role, 20)]), "from ports that the kernel chooses");
    }
    assert!(agent.is_running());
    assert_ready(node);
}

/// Asserts that the agent reports that it is ready.
pub fn assert_ready(node: &Node) {
    let output = Command::new(agent_binary())
        .args(["probe", "ready", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    assert!(output.status.success(), "not ready: {output:?}");
}
