//! Agents and guards as processes of the node, and what they log.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Lab;
use super::pod::command_in;

/// How an agent runs.
#[derive(Clone, Debug)]
pub struct AgentSpec {
    /// The binary.
    pub binary: PathBuf,
    /// The cgroup that it runs in, if that is not [`Lab::agent_cgroup`].
    pub cgroup: Option<PathBuf>,
    /// Whether `--cgroup` names the pods' cgroup; without the flag the agent searches for it.
    pub passes_cgroup: bool,
    /// A kubeconfig and the node's name, if pods come from an API server instead of the lab's manifests.
    pub cluster: Option<(PathBuf, &'static str)>,
    /// `--base-role-arn`
    pub base: Option<&'static str>,
    /// Further flags.
    pub flags: Vec<String>,
    /// Environment variables beside `PATH`.
    pub environment: Vec<(String, String)>,
}

impl AgentSpec {
    /// Describes an agent that runs outside the pods' cgroup and calls this STS.
    pub fn new(binary: &Path, sts: &str) -> Self {
        let flags = ["--sts-endpoint", sts, "--namespace-policy", "off"]
            .map(str::to_owned)
            .to_vec();
        Self {
            binary: binary.to_owned(),
            cgroup: None,
            passes_cgroup: true,
            cluster: None,
            base: Some("arn:aws:iam::123456789012:role/"),
            flags,
            environment: Vec::new(),
        }
    }

    /// Returns the flags that name the source of pods.
    fn pods(&self, lab: &Lab) -> Vec<OsString> {
        match &self.cluster {
            None => vec!["--manifests".into(), lab.manifests().into()],
            Some((kubeconfig, node)) => vec![
                "--kubeconfig".into(),
                kubeconfig.into(),
                "--node-name".into(),
                (*node).into(),
            ],
        }
    }

    /// Adds flags.
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }
}

#[derive(Debug, Default)]
struct Log {
    lines: Mutex<(Vec<String>, bool)>,
    more: Condvar,
}

/// A running agent or guard. Dropping it kills the process.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: Arc<Log>,
}

impl Agent {
    /// Starts an agent, and waits for nothing.
    pub fn spawn(lab: &Lab, spec: &AgentSpec) -> Result<Self> {
        let cgroup = spec.cgroup.clone().unwrap_or_else(|| lab.agent_cgroup());
        let mut command = command_in(&spec.binary, Some(&cgroup), lab.node().file())?;
        command
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("RUST_BACKTRACE", "1")
            .envs(spec.environment.iter().cloned())
            .arg("run")
            .args(spec.pods(lab))
            .arg("--runtime-dir")
            .arg(lab.runtime_dir())
            .args(spec.base.map(|base| format!("--base-role-arn={base}")))
            .args(
                spec.passes_cgroup
                    .then(|| ["--cgroup".into(), lab.kubepods()])
                    .into_iter()
                    .flatten(),
            )
            .args(&spec.flags);
        Self::with_log(command)
    }

    /// Starts a guard in the node's network namespace, with the agents' runtime directory.
    pub fn guard(lab: &Lab, binary: &Path, flags: &[&str]) -> Result<Self> {
        let mut command = command_in(binary, Some(&lab.agent_cgroup()), lab.node().file())?;
        command
            .env_clear()
            .env("RUST_BACKTRACE", "1")
            .arg("guard")
            .arg("--runtime-dir")
            .arg(lab.runtime_dir())
            .arg("--cgroup")
            .arg(lab.kubepods())
            .args(flags);
        Self::with_log(command)
    }

    /// Starts the binary with these arguments, in this process's cgroup, namespaces and environment.
    pub fn run(binary: &Path, words: &[String]) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(words);
        Self::with_log(command)
    }

    fn with_log(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let stderr = child.stderr.take().context("the agent's standard error")?;
        let log = Arc::new(Log::default());
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    log.lines
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                        .push(line);
                    log.more.notify_all();
                }
                log.lines.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
                log.more.notify_all();
            }
        });
        Ok(Self { child, log })
    }

    /// Starts an agent and waits until it is ready.
    pub fn start(lab: &Lab, spec: &AgentSpec) -> Result<Self> {
        let agent = Self::spawn(lab, spec)?;
        agent.wait_for(" ready ")?;
        Ok(agent)
    }

    /// Waits up to 15 s for a line of the log that contains this text.
    pub fn wait_for(&self, wanted: &str) -> Result<String> {
        self.wait_for_nth(wanted, 1)
    }

    /// Waits up to 15 s for the n-th line of the log that contains this text.
    pub fn wait_for_nth(&self, wanted: &str, n: usize) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(15);
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(line) = lines.0.iter().filter(|line| line.contains(wanted)).nth(n - 1) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || lines.1 {
                bail!(
                    "the agent did not log {wanted:?}; it logged:\n{}",
                    lines.0.join("\n")
                );
            }
            (lines, _) = self
                .log
                .more
                .wait_timeout(lines, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns everything that it has logged.
    pub fn logged(&self) -> String {
        self.log
            .lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .join("\n")
    }

    /// Returns the addresses of its listeners, which the line `ready` names.
    pub fn listeners(&self) -> Result<Vec<std::net::SocketAddr>> {
        let line = self.wait_for(" ready ")?;
        let (_, list) = line
            .split_once("listen=")
            .context("the line `ready` names no listeners")?;
        list.trim()
            .split(',')
            .map(|address| address.parse().context("`ready` names an invalid address"))
            .collect()
    }

    /// Returns its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Reports whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits until it has ended and its last line is read.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        let mut lines = self.log.lines.lock().unwrap_or_else(PoisonError::into_inner);
        while !lines.1 {
            lines = self.log.more.wait(lines).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(status)
    }

    /// Sends SIGTERM and waits until it has ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
