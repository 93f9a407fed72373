//! The lab's node on which everything is measured, and the processes that run on it.

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
use nix::sys::signal::{Signal, kill};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::load::Outcome;
use crate::shell::go_on;

/// The path that pods request by default.
pub const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/app";

/// The address of the metadata service, to which pods connect.
pub const IMDS: &str = "169.254.169.254:80";

/// The flags of an agent without limits, because limits would slow down the clients of a measurement.
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
    /// The binary of this program, from the same build.
    tools: PathBuf,
    /// The binary of the lab's attacks, from the same build.
    attacker: PathBuf,
    /// The binary that sends requests to the server in memory, from the same build.
    pub kept_requests: PathBuf,
    pub effort: Effort,
}

/// The number and the length of measurements.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// The number of rounds of each comparison.
    pub rounds: usize,
    /// The duration of one measurement, in milliseconds.
    pub millis: u64,
    /// The number of connections of a measurement that counts connections.
    pub connections: usize,
    /// Whether this is a smoke run, which only checks that the benchmark runs.
    pub smoke: bool,
}

impl Effort {
    /// Returns the list, or its first two items in a smoke run.
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
            kept_requests: binaries.join("kept-requests"),
            effort,
        })
    }

    /// Describes an agent without limits.
    pub fn spec(&self, flags: &[&str]) -> AgentSpec {
        self.limited().with(&NO_LIMITS).with(flags)
    }

    fn limited(&self) -> AgentSpec {
        AgentSpec::new(&self.agent, &FakeSts::url())
    }

    /// Starts an agent with the default limits.
    pub fn agent_with_limits(&self) -> Result<Agent> {
        Agent::start(&self.lab, &self.limited().with(&["--imds-v1=allow"]))
    }

    /// Starts an agent without limits.
    pub fn agent(&self, flags: &[&str]) -> Result<Agent> {
        Agent::start(&self.lab, &self.spec(flags))
    }

    /// Starts an agent of another build, without limits.
    pub fn agent_of(&self, binary: &Path) -> Result<Agent> {
        let spec = AgentSpec {
            binary: binary.to_owned(),
            ..self.spec(&[])
        };
        Agent::start(&self.lab, &spec)
    }

    /// Starts a guard, and waits until it keeps pods from the metadata service.
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

    /// Makes a pod whose closed connections leave no TIME_WAIT entries, which would affect the next round.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let pod = self.lab.pod(spec)?;
        if let Some(netns) = pod.netns() {
            no_time_wait(netns)?;
        }
        Ok(pod)
    }

    /// Prepares a hidden command of this program, which runs in a pod.
    pub fn in_pod(&self, pod: &Pod, words: &[&str]) -> Result<Command> {
        let mut command = pod.command(&self.tools)?;
        command.args(words);
        Ok(command)
    }

    /// Prepares an attack from within a pod.
    pub fn attack(&self, pod: &Pod, words: &[&str]) -> Result<Command> {
        let mut command = pod.command(&self.attacker)?;
        command.arg("attack").args(words);
        Ok(command)
    }

    /// Prepares a hidden command of this program, which runs in a network namespace and outside of every pod.
    pub fn in_netns(&self, netns: &Netns, words: &[&str]) -> Result<Command> {
        let mut command = self.program_in(&self.tools, netns)?;
        command.args(words);
        Ok(command)
    }

    /// Returns a command that runs a program outside of every pod.
    pub fn program_in(&self, program: &Path, netns: &Netns) -> Result<Command> {
        command_in(program, Some(&self.lab.host_cgroup()), netns.file())
    }

    /// Runs `bench-load` in a pod.
    pub fn load(&self, pod: &Pod, words: &[&str]) -> Result<Outcome> {
        finish(start(&mut self.in_pod(pod, &[&["bench-load"], words].concat())?)?)
    }

    /// Runs `bench-load` in a network namespace and outside of every pod.
    pub fn load_in(&self, netns: &Netns, words: &[&str]) -> Result<Outcome> {
        finish(start(
            &mut self.in_netns(netns, &[&["bench-load"], words].concat())?,
        )?)
    }

    /// Writes the bytes of the agent's response to this pod into a file, and returns the file's path.
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

    /// Starts a bare server in a network namespace, which sends the recorded response.
    pub fn bare(&self, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        self.server("bench-bare", netns, address, answer)
    }

    /// Starts a null server in a network namespace, which sends the recorded response without parsing requests.
    pub fn null(&self, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        self.server("bench-null", netns, address, answer)
    }

    fn server(&self, command: &str, netns: &Netns, address: SocketAddr, answer: &Path) -> Result<Process> {
        let listen = address.to_string();
        let mut command = self.in_netns(netns, &[command, "--listen", &listen, "--answer"])?;
        self.listening(command.arg(answer), netns, address)
    }

    /// Starts a server, and waits until it listens at this address.
    pub fn listening(&self, command: &mut Command, netns: &Netns, address: SocketAddr) -> Result<Process> {
        let mut process = Process::spawn(command)?;
        within(Duration::from_secs(5), "a server that listens", || {
            if let Some(status) = process.0.try_wait()? {
                bail!("{} has ended: {status}", command.get_program().display());
            }
            Ok(netns.run(|| std::net::TcpStream::connect(address))?.is_ok())
        })?;
        Ok(process)
    }
}

/// Describes an STS with this latency, whose tokens are as long as those of AWS.
pub fn ordinary(takes: Duration) -> Behaviour {
    Behaviour {
        takes,
        token_size: 1000,
        ..Behaviour::default()
    }
}

/// Returns the node's address with this port.
pub fn at_node(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(NODE_IP), port)
}

/// Returns the address at which pods reach the agent directly.
pub fn listener(agent: &Agent) -> Result<SocketAddr> {
    let found = agent
        .listeners()?
        .into_iter()
        .find(|listener| listener.ip() == IpAddr::V4(NODE_IP));
    found.context("the agent does not listen on the node's address")
}

/// Disables TIME_WAIT and widens the range of local ports, so that the ports of closed connections can be reused at
/// once.
pub fn no_time_wait(netns: &Netns) -> Result<()> {
    netns.sysctl("net/ipv4/tcp_max_tw_buckets", "0")?;
    netns.sysctl("net/ipv4/ip_local_port_range", "10000 65000")
}

/// Starts a command, and captures its output for [`collect`] and [`finish`].
pub fn start(command: &mut Command) -> Result<Child> {
    go_on()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))
}

/// Waits for a `bench-load`, and returns its outcome, including failures.
pub fn collect(child: Child) -> Result<Outcome> {
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the load failed: {}", output.status);
    serde_json::from_slice(&output.stdout).context("cannot parse the output of the load")
}

/// Waits for a `bench-load`, and returns its outcome.
///
/// # Errors
/// If a request failed, because failures are fast and would change the times.
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

/// Stops an agent.
///
/// # Errors
/// If it had ended before, because the measurement would not be of this agent.
pub fn stop(mut agent: Agent) -> Result<()> {
    ensure!(
        agent.is_running(),
        "the agent had ended by itself: {}",
        agent.logged()
    );
    let status = agent.stop()?;
    ensure!(
        status.success(),
        "the agent failed ({status}): {}",
        agent.logged()
    );
    Ok(())
}

/// How long a process may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A process. Dropping it ends the process by SIGTERM, so that it can end its own children, and by SIGKILL if that takes
/// too long.
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
        let pid = i32::try_from(self.0.id()).map(Pid::from_raw);
        let is_signalled = pid.is_ok_and(|pid| kill(pid, Signal::SIGTERM).is_ok());
        let end = Instant::now() + STOP_TIMEOUT;
        while is_signalled && Instant::now() < end {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the processor time of all threads of a process and of its children, including threads that have ended
/// (clock_getcpuclockid(3)).
pub fn processor_time(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    // proc_tid_children(5)
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().map(str::parse);
    for pid in [Ok(i32::try_from(pid)?)].into_iter().chain(children) {
        let pid = pid.context("the number of a process")?;
        let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid))
            .with_context(|| format!("cannot read the processor time of process {pid}"))?;
        sum += Duration::from(clock.now()?);
    }
    Ok(sum)
}

/// Returns a field of `/proc/PID/status`; sizes are in KiB (proc_pid_status(5)).
pub fn status(pid: u32, field: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|value| value.parse().ok());
    value.with_context(|| format!("cannot read {field} of process {pid}"))
}

/// Waits until a condition holds.
///
/// # Errors
/// If it does not hold within the limit.
pub fn within(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + limit;
    while !holds()? {
        go_on()?;
        if Instant::now() > end {
            bail!("timed out after {limit:?} while waiting for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
