//! `cargo xtask vm-test` tests interception, identity and attacks on it, NAT, guard and cleanup on Debian's kernels.
//! Each kernel is booted in QEMU without hardware virtualisation, which is not available on every machine.
//!
//! The guest's file system is an initramfs with the lab's test program, the binaries that it calls, `ip` and `nft`.
//! Only the machine is emulated.

mod debian;
mod guest;
mod initramfs;
mod modules;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::debian::{Kernel, Qemu};
pub use self::guest::is_guest;
pub use self::guest::run as run_guest;
use crate::shell::{cargo, root, run, step};
use crate::{ebpf, setup};

/// How long a guest may run before it is killed.
const GUEST_TIMEOUT: Duration = Duration::from_secs(1800);

/// Modules of `metaproxy/tests/lab` that need nothing but the binaries, `ip` and `nft`.
const MODULES: [&str; 5] = ["kernels", "outsiders", "attacks", "nat", "interceptors"];

/// The tests that run with [`VmTest::quick`] in addition to those of [`QUICK_WHOLE`]: one case for each way in which
/// a connection reaches the eBPF programs or bypasses them.
const QUICK: [&str; 10] = [
    "connections_that_a_pod_answers_by_a_raw_socket_change_nothing_for_others::case_2",
    "answers_in_a_namespace_of_its_own_change_nothing_for_others::case_3",
    "a_victim_whose_syns_meet_those_of_a_thief",
    "a_process_behind_nat_inside_its_pod_is_served_as_its_pod::case_2",
    "two_pods_with_the_same_address_are_each_served_as_themselves_at_the_same_time::case_1",
    "a_relay_of_packets_is_never_answered_as_the_victim::case_1",
    "a_relay_by_nat_rules_in_the_attackers_namespace_is_never_answered_as_the_victim::case_1",
    "a_program_that_answers_in_the_listeners_place",
    "a_connection_that_a_socket_load_balancer_sends_elsewhere",
    "options_that_were_altered_on_the_way_are_right_or_refused::case_03",
];

/// The modules of which every test runs with [`VmTest::quick`].
const QUICK_WHOLE: [&str; 2] = ["kernels", "outsiders"];

/// The word on the kernel's command line that selects the tests of [`VmTest::quick`].
const QUICK_WORD: &str = "quick-selection";

/// The start of the guest's last line, which ends with the exit status of the tests.
const EXIT: &str = "VM-TEST-EXIT";

/// The arguments of `cargo xtask vm-test`.
#[derive(Clone, Debug, Args)]
pub struct VmTest {
    /// Run on this kernel only; repeatable [default: all]
    #[arg(long, value_enum)]
    kernel: Vec<Series>,
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run only tests that depend on the kernel, and one case of each kind of attack: takes half the time
    #[arg(long, conflicts_with = "filter")]
    quick: bool,
}

impl VmTest {
    /// Returns the word on the kernel's command line that selects the tests, or `None` for all tests.
    fn word(&self) -> Option<&str> {
        if self.quick {
            return Some(QUICK_WORD);
        }
        self.filter.as_deref()
    }
}

/// The kernels of Debian's releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Series {
    /// bullseye
    #[value(name = "5.10")]
    Bullseye,
    /// bookworm
    #[value(name = "6.1")]
    Bookworm,
    /// trixie
    #[value(name = "6.12")]
    Trixie,
    /// testing
    Newest,
}

impl Series {
    /// Returns Debian's name for the release, and whether its newest kernel is among the security updates.
    fn suite(self) -> (&'static str, bool) {
        match self {
            Self::Bullseye => ("bullseye", true),
            Self::Bookworm => ("bookworm", true),
            Self::Trixie => ("trixie", true),
            Self::Newest => ("testing", false),
        }
    }
}

/// The outcome on one kernel.
struct Outcome {
    release: String,
    passed: Vec<String>,
    failed: Vec<String>,
    problem: Option<String>,
    took: Duration,
}

impl Outcome {
    /// Records a problem for each of these names that no passed test contains, because the test may have been
    /// renamed.
    fn miss(&mut self, names: &[&str]) {
        let missing: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !self.passed.iter().any(|passed| passed.contains(name)))
            .collect();
        if self.problem.is_none() && !missing.is_empty() {
            self.problem = Some(format!("no test has passed whose name contains {missing:?}"));
        }
    }

    fn is_green(&self) -> bool {
        self.problem.is_none() && self.failed.is_empty() && !self.passed.is_empty()
    }
}

/// Returns the directory of all files that this module writes.
fn dir() -> PathBuf {
    root().join("target/vm")
}

/// Runs the tests on each kernel; writes `target/vm/summary.json`.
pub fn test(options: &VmTest) -> Result<()> {
    setup::for_demo()?;
    ebpf::build()?;
    let series = if options.kernel.is_empty() {
        Series::value_variants().to_vec()
    } else {
        options.kernel.clone()
    };
    let program = build_tests()?;
    let qemu = debian::qemu()?;
    let base = initramfs::base(&program)?;
    let mut outcomes = Vec::new();
    for series in series {
        let (suite, from_security) = series.suite();
        let kernel = debian::kernel(suite, from_security)?;
        step(&format!("Linux {} in QEMU", kernel.release));
        let mut outcome = boot(&qemu, &kernel, &base, options.word())?;
        if options.quick {
            outcome.miss(&QUICK);
        }
        println!(
            "Linux {}: {} passed, {} failed, {:.0} s{}",
            outcome.release,
            outcome.passed.len(),
            outcome.failed.len(),
            outcome.took.as_secs_f64(),
            outcome
                .problem
                .as_ref()
                .map_or_else(String::new, |problem| format!("; {problem}")),
        );
        outcomes.push(outcome);
    }
    let summary = dir().join("summary.json");
    fs::write(&summary, serde_json::to_vec_pretty(&json(&outcomes))?)?;
    println!("summary: {}", summary.display());
    ensure!(
        outcomes.iter().all(Outcome::is_green),
        "tests failed on at least one kernel; see the summary"
    );
    Ok(())
}

fn json(outcomes: &[Outcome]) -> serde_json::Value {
    let one = |outcome: &Outcome| {
        serde_json::json!({
            "kernel": outcome.release,
            "green": outcome.is_green(),
            "passed": outcome.passed,
            "failed": outcome.failed,
            "problem": outcome.problem,
            "seconds": outcome.took.as_secs(),
        })
    };
    outcomes.iter().map(one).collect()
}

/// Builds the lab's test program and the binaries that it runs.
fn build_tests() -> Result<PathBuf> {
    step("building");
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    let output = cargo()
        .args(["test", "--no-run", "--quiet", "--workspace", "--test", "lab"])
        .args(["--message-format", "json"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not build");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut executables = text.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_lab = message["target"]["name"] == "lab";
        is_lab.then(|| message["executable"].as_str().map(PathBuf::from))?
    });
    executables.next().context("cargo names no test program")
}

fn boot(qemu: &Qemu, kernel: &Kernel, base: &Path, filter: Option<&str>) -> Result<Outcome> {
    let initrd = initramfs::with_modules(base, kernel)?;
    let mut parameters = "console=ttyS0 panic=-1 quiet mitigations=off random.trust_cpu=on --".to_owned();
    if let Some(filter) = filter {
        parameters.push(' ');
        parameters.push_str(filter);
    }
    let mut command = qemu.command();
    command
        // Without RDRAND the first random number takes a second or two; without CMPXCHG16B, which every real machine
        // has, Linux 7 has no memory for socket storage.
        .args(["-M", "pc", "-cpu", "Nehalem,+rdrand", "-smp", "1", "-m", "1536"])
        .args(["-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initrd)
        .args(["-append", &parameters])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let begun = Instant::now();
    let mut child = command.spawn().context("cannot run QEMU")?;
    let mut console = child.stdout.take().context("the guest's console")?;
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = console.read_to_end(&mut text);
        String::from_utf8_lossy(&text).replace('\r', "")
    });
    while child.try_wait()?.is_none() {
        if begun.elapsed() > GUEST_TIMEOUT {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let Ok(text) = reading.join() else {
        bail!("the guest's console could not be read")
    };
    let log = dir().join(format!("{}.log", kernel.release));
    fs::write(&log, &text).with_context(|| format!("cannot write {}", log.display()))?;
    let outcome = read_outcome(&text, kernel, begun.elapsed(), &log);
    if !outcome.is_green() {
        println!("{text}");
    }
    Ok(outcome)
}

/// Reads the outcome from the output of the test program. A guest that ended without its last line has failed.
fn read_outcome(text: &str, kernel: &Kernel, took: Duration, log: &Path) -> Outcome {
    let of = |outcome: &str| -> Vec<String> {
        let tests = text.lines().filter_map(|line| {
            let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
            result.starts_with(outcome).then(|| name.to_owned())
        });
        tests.collect()
    };
    let status = text
        .lines()
        .find_map(|line| line.split_once(EXIT).map(|(_, status)| status.trim().to_owned()));
    let problem = match status.as_deref() {
        Some("0") => None,
        Some(status) => Some(format!("the tests ended with status {status}: {}", log.display())),
        None => Some(format!("the guest ended without a status: {}", log.display())),
    };
    Outcome {
        release: kernel.release.clone(),
        passed: of("ok"),
        failed: of("FAILED"),
        problem,
        took,
    }
}

/// Runs a command and returns its output, which is shown only if it fails.
fn quietly(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
