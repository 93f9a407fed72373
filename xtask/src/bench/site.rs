//! Where it is measured: the lab's node, and what runs on it.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::FakeImds;
use metaproxy_lab::netns::Netns;
use metaproxy_lab::pod::{Pod, PodSpec, command_in};
use metaproxy_lab::sts::{Behaviour, FakeSts};
use metaproxy_lab::{Lab, NODE_IP};

use super::load::Outcome;
use crate::shell::go_on;

/// What all pods ask for, unless they ask for something else.
pub const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/app";

/// Where pods believe to be asking.
pub const IMDS: &str = "169.254.169.254:80";

/// What is measured is the agent, and not how it slows down a pod that asks too much.
const NO_LIMITS: [&str; 6] = [
    "--idle-timeout=1h",
    "--max-connections-per-pod=1000000",
    "--max-connection-rate-per-pod=100000000",
    "--max-request-rate-per-pod=100000000",
    "--admin-address=off",
    "--imds-v1=allow",
];

/// The node, with a metadata service and an STS of its own.
pub struct Site {
    pub lab: Lab,
    pub sts: FakeSts,
    _imds: FakeImds,
    /// The agent's binary.
    agent: PathBuf,
    /// This program, built as the agent is.
    tools: PathBuf,
    /// The lab's attacker, built likewise.
    attacker: PathBuf,
    pub effort: Effort,
}

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// How often things are compared.
    pub rounds: usize,
    /// How long one of them is asked each time, in milliseconds.
    pub millis: u64,
    /// Connections, where they are counted.
    pub connections: usize,
    /// Whether it only has to run.
    pub smoke: bool,
}

impl Effort {
    /// What this list is shortened to where it only has to run.
    pub fn some<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        if self.smoke { &all[..all.len().min(2)] } else { all }
    }
}

impl Site {
    pub fn new(binaries: &Path, effort: Effort) -> Result<Self> {
        let lab = Lab::alone()?;
        let keys = ("node".to_owned(), "node".to_owned(), "node".to_owned());
        let imds = FakeImds::start(lab.aws(), keys)?;
        let sts = FakeSts::start(lab.aws(), Duration::ZERO)?;
        sts.behave(ordinary(Duration::ZERO));
        Ok(Self {
            lab,
            sts,
            _imds: imds,
            agent: binaries.join("metaproxy"),
            tools: binaries.join("xtask"),
            attacker: binaries.join("metaproxy-lab"),
            effort,
        })
    }

    /// Of an agent without limits.
    pub fn spec(&self, flags: &[&str]) -> AgentSpec {
        self.limited().with(&NO_LIMITS).with(flags)
    }

    fn limited(&self) -> AgentSpec {
        AgentSpec::new(&self.agent, &FakeSts::url())
    }

    /// An agent that serves, with the limits that it has by default.
    pub fn agent_with_limits(&self) -> Result<Agent> {
        Agent::start(&self.lab, &self.limited().with(&["--imds-v1=allow"]))
    }

    /// An agent that serves.
    pub fn agent(&self, flags: &[&str]) -> Result<Agent> {
        Agent::start(&self.lab, &self.spec(flags))
    }

    /// One of another build.
    pub fn agent_of(&self, binary: &Path) -> Result<Agent> {
        let spec = AgentSpec {
            binary: binary.to_owned(),
            ..self.spec(&[])
        };
        Agent::start(&self.lab, &spec)
    }

    /// A guard that keeps pods out.
    pub fn guard(&self) -> Result<Agent> {
        let guard = Agent::guard(
            &self.lab,
            &self.agent,
            &["--close", "at-once", "--guard", "packets"],
        )?;
        guard.wait_for("attached to an uplink")?;
        guard.wait_for("guard closed")?;
        Ok(guard)
    }

    /// A pod whose connections leave nothing behind: those of the next round would meet what is left of these.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.lab.pod(spec)?;
        if let Some(netns) = pod.netns() {
            no_time_wait(netns)?;
        }
        Ok(pod)
    }

    /// This program as one of its hidden commands, in a pod.
    pub fn in_pod(&self, pod: &Pod, words: &[&str]) -> Result<Command> {
        let mut command = pod.command(&self.tools)?;
        command.args(words);
        Ok(command)
    }

    /// An attack from within a pod.
    pub fn attack(&self, pod: &Pod, words: &[&str]) -> Result<Command> {
        let mut command = pod.command(&self.attacker)?;
        command.arg("attack").args(words);
        Ok(command)
    }

    /// This program as one of its hidden commands, outside of every pod.
    pub fn in_netns(&self, netns: &Netns, words: &[&str]) -> Result<Command> {
        let mut command = command_in(&self.tools, Some(&self.lab.host_cgroup()), netns.file())?;
        command.args(words);
        Ok(command)
    }

    /// Load from a pod.
    pub fn load(&self, pod: &Pod, words: &[&str]) -> Result<Outcome> {
        finish(start(&mut self.in_pod(pod, &[&["bench-load"], words].concat())?)?)
    }

    /// Load from outside of every pod.
    pub fn load_in(&self, netns: &Netns, words: &[&str]) -> Result<Outcome> {
        finish(start(
            &mut self.in_netns(netns, &[&["bench-load"], words].concat())?,
        )?)
    }

    /// What the agent answers to this pod, to the byte.
    pub fn record(&self, pod: &Pod, path: &str) -> Result<PathBuf> {
        let output = self
            .in_pod(pod, &["bench-record", "--to", IMDS, "--path", path])?
            .stderr(Stdio::inherit())
            .output()
            .context("cannot ask the agent")?;
        ensure!(
            output.stdout.starts_with(b"HTTP/1.1 200"),
            "the agent has no credentials for {path}"
        );
        let file = self.lab.dir().join("answer");
        fs::write(&file, &output.stdout)?;
        Ok(file)
    }

    /// A bare server in this namespace, which answers what was recorded.
    pub fn bare(&self, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        self.server("bench-bare", netns, address, answer)
    }

    /// The same without parsing what is asked.
    pub fn null(&self, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        self.server("bench-null", netns, address, answer)
    }

    fn server(&self, command: &str, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        let listen = address.to_string();
        let mut command = self.in_netns(netns, &[command, "--listen", &listen, "--answer"])?;
        let process = Process::spawn(command.arg(answer))?;
        within(Duration::from_secs(5), "a server that listens", || {
            Ok(netns.run(|| std::net::TcpStream::connect(address))?.is_ok())
        })?;
        Ok(process)
    }
}

/// An STS whose tokens are as long as AWS's, and which takes that long.
pub fn ordinary(takes: Duration) -> Behaviour {
    Behaviour {
        takes,
        token_size: 1000,
        ..Behaviour::default()
    }
}

/// An address of the node.
pub fn at_node(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(NODE_IP), port)
}

/// Where pods reach the agent directly.
pub fn listener(agent: &Agent) -> Result<SocketAddr> {
    let found = agent
        .listeners()?
        .into_iter()
        .find(|listener| listener.ip() == IpAddr::V4(NODE_IP));
    found.context("the agent does not listen on the node's address")
}

/// Addresses and ports of what is closed can be used again at once.
pub fn no_time_wait(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
    netns.sysctl("net/ipv4/ip_local_port_range", "10000 65000")
}

/// Started, with what it prints kept for [`finish`].
pub fn start(command: &mut Command) -> Result<Child> {
    go_on()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// What it measured, failures among it.
pub fn collect(child: Child) -> Result<Outcome> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "load: {}", output.status);
    serde_json::from_slice(&output.stdout).context("what the load printed")
}

/// What it measured; an error where anything failed, as failures are fast.
pub fn finish(child: Child) -> Result<Outcome> {
    let outcome = collect(child)?;
    ensure!(
        outcome.failed == 0 && outcome.done > 0,
        "{} of {} requests failed",
        outcome.failed,
        outcome.failed + outcome.done
    );
    Ok(outcome)
}

/// Ends an agent, which must have been there until now: without it, what was measured would be something else.
pub fn stop(mut agent: Agent) -> Result<()> {
    ensure!(
        agent.is_running(),
        "the agent had ended by itself: {}",
        agent.logged()
    );
    let status = agent.stop()?;
    ensure!(status.success(), "the agent: {status}: {}", agent.logged());
    Ok(())
}

/// A process that ends when it is dropped.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::null()).spawn();
        Ok(Self(child.with_context(|| {
            format!("cannot run {}", command.get_program().display())
        })?))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What all threads of a process have run for, those that have ended too (clock_getcpuclockid(3)).
pub fn processor_time(pid: u32) -> Result<Duration> {
    let clock = nix::time::ClockId::pid_cpu_clock_id(nix::unistd::Pid::from_raw(pid.try_into()?))
        .with_context(|| format!("the processor time of process {pid}"))?;
    Ok(clock.now()?.into())
}

/// A field of `/proc/PID/status`; sizes are in KiB (proc_pid_status(5)).
pub fn status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|value| value.parse().ok());
    value.with_context(|| format!("{field} of process {pid}"))
}

/// Tries until it holds.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !holds()? {
        go_on()?;
        if Instant::now() > end {
            bail!("not within {limit:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
