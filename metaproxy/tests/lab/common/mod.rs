//! Helpers for the lab's tests: the binaries, a node with its agent, and pods that connect.
#![allow(dead_code, reason = "each test binary uses only some of the helpers")]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it fails"
)]

pub mod attackers;
pub mod clients;
pub mod cluster;
pub mod deployed;
pub mod doctor;
pub mod http;
pub mod identity;
pub mod nested;
pub mod sessions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::{FakeImds, Keys};
use metaproxy_lab::pod::{Pod, command_in};
use metaproxy_lab::sts::FakeSts;
use metaproxy_lab::{Lab, bpf};

/// The outcomes of connections, each with its count.
pub type Outcomes = BTreeMap<String, usize>;

pub const IMDS: &str = "169.254.169.254:80";
pub const MAPPED: &str = "[::ffff:169.254.169.254]:80";
pub const IMDS6: &str = "[fd00:ec2::254]:80";

/// Returns the binary under test: that of this build, or the one that `METAPROXY_TEST_BINARY` names, such as an
/// optimised build.
pub fn agent_binary() -> &'static Path {
    static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("METAPROXY_TEST_BINARY")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_metaproxy")), PathBuf::from)
    });
    &BINARY
}

/// Returns the lab's client, which `cargo xtask test` and `cargo build --workspace` build.
pub fn client_binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_metaproxy")).with_file_name("metaproxy-lab");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace`",
        path.display()
    );
    path
}

/// The value for `--admin-address` in tests. An agent has no admin address by default.
pub const ADMIN: &str = "127.0.0.1:16925";

/// The outcome of a connection to the metadata service that a guard refuses.
pub const UNREACHABLE: &str = "error ENETUNREACH: Network is unreachable";

/// Makes a lab. Returns `None` without root on a developer's machine. Under CI a missing root is a failure, so that
/// no test is skipped silently.
pub fn lab() -> Option<Lab> {
    may_have_a_lab().then(|| Lab::new().expect("the lab"))
}

/// Makes a lab, and lets no other lab run beside it.
fn lab_alone() -> Option<Lab> {
    may_have_a_lab().then(|| Lab::alone().expect("the lab"))
}

fn may_have_a_lab() -> bool {
    let may = nix::unistd::geteuid().is_root() || std::env::var_os("CI").is_some();
    if !may {
        eprintln!("skipped: needs root (sudo cargo xtask test)");
    }
    may
}

pub fn node_keys() -> Keys {
    (
        "AKIANODE".to_owned(),
        "node-secret".to_owned(),
        "node-token".to_owned(),
    )
}

/// A node with its metadata service and an STS that gives any role.
pub struct Node {
    pub imds: FakeImds,
    pub sts: FakeSts,
    pub lab: Lab,
}

pub fn node() -> Option<Node> {
    Some(Node::of(lab()?, Duration::ZERO))
}

/// Makes a node, and lets no other lab run beside it. Tests that measure time or load, or that have tight time
/// limits, need this.
pub fn node_alone() -> Option<Node> {
    node_with_sts(Duration::ZERO)
}

/// Makes a node whose STS answers after this time, and lets no other lab run beside it.
pub fn node_with_sts(takes: Duration) -> Option<Node> {
    Some(Node::of(lab_alone()?, takes))
}

impl Node {
    fn of(lab: Lab, sts_takes: Duration) -> Self {
        let imds = FakeImds::start(lab.aws(), node_keys()).expect("the metadata service");
        let sts = FakeSts::start(lab.aws(), sts_takes).expect("STS");
        Self { imds, sts, lab }
    }

    /// Asserts that the kernel has unloaded all eBPF objects that this lab's processes had loaded.
    #[track_caller]
    pub fn assert_nothing_loaded(&self) {
        self.assert_nothing_loaded_beside(&[]);
    }

    /// Asserts that the kernel has unloaded all eBPF objects that this lab's processes, except these, had loaded.
    #[track_caller]
    pub fn assert_nothing_loaded_beside(&self, processes: &[u32]) {
        let left = bpf::left_over(&self.lab, processes).expect("the kernel's objects");
        assert!(left.is_empty(), "still loaded: {left:#?}");
    }

    /// Lists the eBPF objects that this lab's processes have loaded into the kernel.
    pub fn loaded(&self) -> Vec<String> {
        bpf::held_in(&self.lab).expect("the kernel's objects")
    }

    pub fn spec(&self) -> AgentSpec {
        AgentSpec::new(agent_binary(), &FakeSts::url())
    }

    pub fn agent(&self) -> Agent {
        Agent::start(&self.lab, &self.spec()).expect("an agent that gets ready")
    }

    /// Starts a guard of this node.
    pub fn guard(&self, flags: &[&str]) -> Agent {
        Agent::guard(&self.lab, agent_binary(), flags).expect("a guard")
    }

    /// Starts a guard, and waits until it refuses pods' connections to the metadata service.
    pub fn closed_guard(&self) -> Agent {
        let guard = self.guard(&["--close", "at-once"]);
        guard.wait_for("guard closed").expect("a guard that closes");
        guard
    }

    /// Prepares a command that runs on the node itself: outside the pods' cgroup, and in the node's network
    /// namespace.
    pub fn host_command(&self, program: impl AsRef<Path>) -> Command {
        command_in(
            program.as_ref(),
            Some(&self.lab.host_cgroup()),
            self.lab.node().file(),
        )
        .expect("a command")
    }

    /// Requests a path through the newest agent's Unix socket, and returns head and body of the answer.
    pub fn asked(&self, path: &str) -> String {
        let sockets = std::fs::read_dir(self.lab.runtime_dir()).expect("the runtime directory");
        let sockets = sockets.flatten().map(|entry| entry.path());
        let socket = sockets
            .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
            .max_by_key(|path| std::fs::metadata(path).and_then(|file| file.modified()).ok())
            .expect("an agent's socket");
        self.curled(&[
            "--unix-socket",
            &socket.display().to_string(),
            &format!("http://localhost{path}"),
        ])
    }

    /// Returns how often an event has occurred in an agent's eBPF programs.
    pub fn kernel_count(&self, event: &str) -> u64 {
        let metrics = self.asked("/metrics");
        let start = format!("metaproxy_kernel_connections_total{{event=\"{event}\"}} ");
        let value = metrics.lines().find_map(|line| line.strip_prefix(&start));
        let value = value.unwrap_or_else(|| panic!("no {start} in {metrics}"));
        value.trim().parse().expect("a count")
    }

    /// Requests a path at the admin address [`ADMIN`], and returns head and body of the answer.
    pub fn asked_at_port(&self, path: &str) -> String {
        self.curled(&[&format!("http://{ADMIN}{path}")])
    }

    fn curled(&self, words: &[&str]) -> String {
        let mut command = self.host_command("curl");
        let output = command.args(["-s", "-i", "--max-time", "5"]).args(words).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    }

    /// Runs the lab's client as a process of the node.
    pub fn host_dial(&self, words: &[&str]) -> Outcomes {
        outcomes(
            self.host_command(client_binary())
                .arg("dial")
                .args(words)
                .stdout(Stdio::piped())
                .spawn()
                .expect("dial"),
        )
    }
}

/// Kills a program, and asserts that it ran until now. A test that needs the disturbance would pass without it.
pub fn end_running(child: &mut Child) {
    let ended = child.try_wait().expect("its status");
    assert!(ended.is_none(), "it ended by itself: {ended:?}");
    child.kill().expect("its end");
    child.wait().expect("its status");
}

/// Starts the lab's client in a pod.
pub fn start_dial(pod: &Pod, words: &[&str]) -> Child {
    let mut command = pod.command(client_binary()).expect("a command");
    command
        .arg("dial")
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .expect("dial")
}

/// Waits until the client has ended, and returns its outcomes.
pub fn outcomes(child: Child) -> Outcomes {
    let output = child.wait_with_output().expect("its output");
    assert!(output.status.success(), "dial: {output:?}");
    serde_json::from_slice(&output.stdout).expect("what dial prints")
}

/// Runs the lab's client in a pod.
pub fn dial(pod: &Pod, words: &[&str]) -> Outcomes {
    outcomes(start_dial(pod, words))
}

/// Builds outcomes for a comparison.
pub fn counts<const N: usize>(wanted: [(&str, usize); N]) -> Outcomes {
    wanted
        .into_iter()
        .map(|(outcome, count)| (outcome.to_owned(), count))
        .collect()
}

/// Waits up to 5 s until a condition holds.
pub fn eventually(what: &str, holds: impl FnMut() -> bool) {
    eventually_within(Duration::from_secs(5), what, holds);
}

/// Waits up to `limit` until a condition holds.
pub fn eventually_within(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
