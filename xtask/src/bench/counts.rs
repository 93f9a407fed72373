//! Measures counts that do not depend on the machine. A regression is visible in these counts on any machine and in a
//! debug build. Each count has a bound. `cargo xtask bench`, which is the last step of CI, fails if a count exceeds
//! its bound.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use metaproxy_common::names;
use metaproxy_lab::pod::{Pod, PodSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::callgrind;
use super::figures::{Figure, Goal, Section};
use super::site::{CREDENTIALS, IMDS, Site, collect, start, stop, within};
use crate::shell::has;

/// The number of requests whose system calls are counted, as a number and as a command-line argument.
const REQUESTS: usize = 2000;
const REQUESTS_WORD: &str = "2000";

/// Maximum number of the agent's system calls for a request on a kept connection, with one client. It needs one call
/// each to wait, to read and to write (3.07 were counted). One more call per request exceeds the bound.
const MAX_CALLS_KEPT: f64 = 4.0;

/// Maximum number of the agent's system calls for a connection with one request. Such a connection is also accepted,
/// identified, limited and closed (15.3 were counted).
const MAX_CALLS_CONNECTION: f64 = 20.0;

/// Maximum number of instructions of the agent's own code for a request on a kept connection. The bound is for the
/// debug build, for which 131,000 were counted. The release build needs fewer.
const MAX_INSTRUCTIONS: f64 = 180_000.0;

/// Maximum number of heap allocations for a request on a kept connection (3.0 were counted). One more allocation is
/// within the bound, two more are not.
const MAX_ALLOCATIONS: f64 = 4.5;

/// Maximum number of instructions that the verifier processes for one program (at most 5,177 were counted, by Linux
/// 6.18). The kernel accepts a million (`BPF_COMPLEXITY_LIMIT_INSNS`). The verification is part of the time to the
/// first answer.
const MAX_VERIFIED: f64 = 10_000.0;

pub fn counts(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("counted", "app"))?;
    let agent = site.agent(&[])?;
    let guard = site.guard()?;
    // This run obtains the session and does all other work that is done only once.
    site.load(&pod, &words("keep"))?;
    let mut section = Section {
        title: "Counts",
        how: "System calls of the agent's process, by strace, with one client that has cached credentials; instructions and \
              heap allocations of the server in memory, by callgrind; and for each program the instructions that the kernel's \
              verifier has walked (Linux 5.16 and newer). They do not depend on the machine",
        ..Section::default()
    };
    if is_there("strace")? {
        for (each, what, most) in [
            ("keep", "system calls for a request, kept open", MAX_CALLS_KEPT),
            (
                "connection",
                "system calls for a request, a connection each",
                MAX_CALLS_CONNECTION,
            ),
        ] {
            let calls = system_calls(site, &pod, agent.pid(), each)?;
            let figure = Figure::once(what, "", calls as f64 / REQUESTS as f64);
            section.figures.push(figure.with_goal(Goal::AtMost(most)));
        }
    }
    if is_there("valgrind")? && is_built(&site.kept_requests)? {
        let cost = callgrind::kept_request(&site.kept_requests, site.lab.dir())?;
        section.figures.extend([
            Figure::once("instructions for a request, kept open", "", cost.instructions)
                .with_goal(Goal::AtMost(MAX_INSTRUCTIONS)),
            Figure::once("allocations for a request, kept open", "", cost.allocations)
                .with_goal(Goal::AtMost(MAX_ALLOCATIONS)),
        ]);
    }
    section.figures.extend(verified()?);
    stop(agent)?;
    stop(guard)?;
    Ok(section)
}

/// Returns whether a counting program is installed. Without the program, its counts are omitted.
///
/// # Errors
/// If it is missing under CI.
fn is_there(program: &str) -> Result<bool> {
    if has(program) {
        return Ok(true);
    }
    ensure!(
        std::env::var_os("CI").is_none(),
        "{program} is missing: run `sudo cargo xtask setup`"
    );
    println!("not everything is counted, because {program} is missing");
    Ok(false)
}

/// Returns whether the program for callgrind was built. Builds from before the program was part of the workspace do
/// not have it.
///
/// # Errors
/// If it is missing under CI.
fn is_built(kept_requests: &Path) -> Result<bool> {
    if kept_requests.exists() {
        return Ok(true);
    }
    ensure!(
        std::env::var_os("CI").is_none(),
        "{} is missing: build the workspace",
        kept_requests.display()
    );
    println!(
        "instructions are not counted, because there is no {}",
        kept_requests.display()
    );
    Ok(false)
}

fn words(each: &str) -> Vec<&str> {
    let to = ["--to", IMDS, "--path", CREDENTIALS];
    [&to[..], &["--count", REQUESTS_WORD, "--each", each]].concat()
}

/// Returns the number of system calls of the process while a client makes [`REQUESTS`] requests.
fn system_calls(site: &Site, pod: &Pod, pid: u32, each: &str) -> Result<u64> {
    let report = site.lab.dir().join(format!("strace-{each}"));
    let mut tracer = Command::new("strace")
        .args(["-f", "-c", "-q", "-U", "name,calls", "-o"])
        .arg(&report)
        .args(["-p", &pid.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run strace")?;
    within(Duration::from_secs(10), "a tracer of every thread", || {
        is_traced(pid)
    })?;
    let load = [&["bench-load"], &words(each)[..]].concat();
    let outcome = collect(start(&mut site.in_pod(pod, &load)?)?);
    // On SIGINT, strace writes its summary and detaches.
    kill(Pid::from_raw(tracer.id().try_into()?), Signal::SIGINT)?;
    tracer.wait()?;
    let outcome = outcome?;
    ensure!(
        outcome.failed == 0 && outcome.done == REQUESTS,
        "{} of {REQUESTS} requests were answered",
        outcome.done
    );
    total(&report)
}

/// Returns whether each thread has a tracer (proc_pid_status(5)).
fn is_traced(pid: u32) -> Result<bool> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        if status.lines().any(|line| line == "TracerPid:\t0") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the sum of the calls in strace's summary. The summary has a header, and then one line `NAME CALLS` for
/// each system call.
fn total(report: &Path) -> Result<u64> {
    let text = fs::read_to_string(report)?;
    let calls: Vec<u64> = text
        .lines()
        .filter_map(|line| {
            let (name, calls) = line.trim().split_once(char::is_whitespace)?;
            if name == "total" {
                return None;
            }
            calls.trim().parse().ok()
        })
        .collect();
    ensure!(!calls.is_empty(), "strace has counted nothing: {text}");
    Ok(calls.into_iter().sum())
}

fn verified() -> Result<Vec<Figure>> {
    // The agent and the guard load some programs with the same name.
    let mut counted = BTreeMap::new();
    for program in loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        if !name.starts_with(names::PREFIX) {
            continue;
        }
        // Kernels before 5.16 do not report the count.
        let Some(count) = program.verified_instruction_count() else {
            continue;
        };
        let most: &mut u32 = counted.entry(name).or_default();
        *most = count.max(*most);
    }
    let figures = counted.into_iter().map(|(name, count)| {
        Figure::once(format!("`{name}`, verified instructions"), "", f64::from(count))
            .with_goal(Goal::AtMost(MAX_VERIFIED))
    });
    Ok(figures.collect())
}
