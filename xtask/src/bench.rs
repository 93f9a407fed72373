//! `cargo xtask bench` measures the cost of metaproxy on the lab's node with the real programs. Things that are
//! compared are measured alternately in one run, so that other load on the machine affects both.

pub mod bare;
mod cached;
mod callgrind;
mod cluster;
mod cold;
mod connects;
mod counts;
mod figures;
mod floods;
mod footprint;
mod guarded;
pub mod hold;
pub mod load;
mod nginx;
mod null;
mod plot;
mod report;
mod sdk;
mod serving;
mod site;
pub mod traffic;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use metaproxy_lab::require_root;

use self::figures::Section;
use self::report::{Report, row};
use self::serving::Peer;
use self::site::{Effort, Site};
use crate::shell::{cargo, catch_interrupts, go_on, output, root, run, step};
use crate::{ebpf, setup};

/// The arguments of `cargo xtask bench`.
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// Run only parts whose name contains this: counts, connects, redirect, cached, cold, sdk, footprint, guard,
    /// floods
    filter: Option<String>,
    /// Another server of credentials to compare with: http://HOST:PORT/PATH
    #[arg(long, value_name = "URL")]
    peer: Option<Peer>,
    /// Start the peer by this shell command on the lab's node (10.200.0.1), and also measure its processor time
    #[arg(long, value_name = "COMMAND", requires = "peer")]
    peer_command: Option<String>,
    /// Measure the binaries in this directory (metaproxy, metaproxy-lab, xtask and kept-requests) instead of building them
    #[arg(long, value_name = "DIR", conflicts_with = "smoke")]
    binaries: Option<PathBuf>,
    /// Another build of metaproxy to compare with, in the part `cached`
    #[arg(long, value_name = "BINARY")]
    before: Option<PathBuf>,
    /// The number of rounds of each comparison
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only check that the benchmark runs, with the debug build and few measurements; only its counts are meaningful
    #[arg(long)]
    smoke: bool,
}

/// Hidden commands that the benchmark runs inside the lab's pods and network namespaces.
#[derive(Clone, Debug, Subcommand)]
pub enum Inside {
    /// For use inside a pod of the lab: send requests as fast as they are answered
    #[command(name = "bench-load", hide = true)]
    Load(load::Load),
    /// For use inside the lab: run a server to compare with
    #[command(name = "bench-bare", hide = true)]
    Bare(bare::Bare),
    /// For use inside the lab: run a server that parses nothing, to compare with
    #[command(name = "bench-null", hide = true)]
    Null(bare::Bare),
    /// For use inside a pod of the lab: print the response to one request
    #[command(name = "bench-record", hide = true)]
    Record(hold::Hold),
    /// For use inside a pod of the lab: hold idle connections
    #[command(name = "bench-hold", hide = true)]
    Hold(hold::Hold),
    /// For use inside the lab: receive other traffic
    #[command(name = "bench-sink", hide = true)]
    Sink(traffic::Sink),
    /// For use inside a pod of the lab: send other traffic
    #[command(name = "bench-send", hide = true)]
    Send(traffic::Send),
}

/// Runs a hidden command.
///
/// # Errors
/// If the command fails.
pub fn inside(inside: &Inside) -> Result<()> {
    match inside {
        Inside::Load(load) => load::run(load),
        Inside::Bare(bare) => bare::run(bare),
        Inside::Null(null) => null::run(null),
        Inside::Record(record) => hold::record(record),
        Inside::Hold(hold) => hold::hold(hold),
        Inside::Sink(sink) => traffic::sink(sink),
        Inside::Send(send) => traffic::send(send),
    }
}

/// The name of the part whose bounds hold in every build and on every machine.
const COUNTS: &str = "counts";

type Part<'a> = (&'static str, &'a dyn Fn(&Site) -> Result<Section>);

/// Builds the binaries, measures, and writes the report. A missed goal is reported, but it is an error only for
/// counts, which are the same on every machine.
///
/// # Errors
/// If something could not be measured, or a count is above its bound.
pub fn bench(bench: &Bench) -> Result<()> {
    require_root()?;
    let binaries = match &bench.binaries {
        Some(dir) => dir.clone(),
        None => build(bench.smoke)?,
    };
    let effort = Effort {
        rounds: if bench.smoke { 1 } else { bench.rounds },
        millis: if bench.smoke { 100 } else { 1500 },
        connections: if bench.smoke { 50 } else { 5000 },
        smoke: bench.smoke,
    };
    let peer = bench
        .peer
        .clone()
        .map(|peer| peer.started_by(bench.peer_command.clone()));
    let cached = |site: &Site| serving::cached(site, peer.as_ref(), bench.before.as_deref());
    let parts: [Part<'_>; 9] = [
        (COUNTS, &counts::counts),
        ("connects", &connects::elsewhere),
        ("redirect", &connects::redirected),
        ("cached", &cached),
        ("cold", &cold::cold),
        ("sdk", &sdk::sdk),
        ("footprint", &footprint::footprint),
        ("guard", &guarded::guarded),
        ("floods", &floods::floods),
    ];
    let mut describe = Command::new("git");
    describe.args(["describe", "--always", "--dirty", "--abbrev=12"]);
    let mut report = Report {
        date: date(),
        commit: match bench.binaries {
            Some(_) => None,
            None => output(describe.current_dir(root())),
        },
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        processor: processor()?,
        processors: std::thread::available_parallelism()?.get(),
        form: form(bench),
        rounds: effort.rounds,
        sections: Vec::new(),
    };
    // A partial or a smoke run must not replace the report of a complete run.
    let mut kind = bench.filter.clone().unwrap_or_else(|| "all".to_owned());
    if bench.smoke {
        kind.push_str("-smoke");
    }
    let dir = root().join("target/bench").join(&kind);
    let partial = root().join("target/bench").join(kind + ".partial");
    catch_interrupts()?;
    let mut bounded = Vec::new();
    for (name, part) in parts {
        if bench.filter.as_ref().is_some_and(|filter| !name.contains(filter)) {
            continue;
        }
        go_on()?;
        step(name);
        // Each part has its own lab, so that entries in the kernel's tables do not affect the next part.
        let site = Site::new(&binaries, effort)?;
        let section = part(&site).with_context(|| format!("the part `{name}`"))?;
        for figure in &section.figures {
            print!("{}", row(figure));
        }
        if name == COUNTS {
            bounded.clone_from(&section.figures);
        }
        report.sections.push(section);
        // The report is written after each part, so that it is kept if a later part fails.
        report.write(&partial)?;
    }
    go_on()?;
    ensure!(!report.sections.is_empty(), "no part matches the filter");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::rename(&partial, &dir)?;
    step(&format!("written to {}", dir.join("report.md").display()));
    let above: Vec<String> = bounded
        .iter()
        .filter(|figure| figure.met == Some(false))
        .map(row)
        .collect();
    ensure!(above.is_empty(), "counts above the bound:\n{}", above.concat());
    if !bench.smoke {
        for figure in report.missed() {
            print!("missed: {}", row(figure));
        }
    }
    Ok(())
}

/// Describes the measured build for the report.
fn form(bench: &Bench) -> String {
    let mut form = match &bench.binaries {
        Some(dir) => format!("the binaries in {}", dir.display()),
        None if bench.smoke => "debug build, smoke run".to_owned(),
        None => "release build".to_owned(),
    };
    if let Some(before) = &bench.before {
        form.push_str(&format!(", against {}", before.display()));
    }
    form
}

/// Builds the binaries, and returns their directory.
fn build(smoke: bool) -> Result<PathBuf> {
    setup::for_demo()?;
    ebpf::build()?;
    step("building");
    let form = if smoke { "debug" } else { "release" };
    let mut build = cargo();
    build.args(["build", "--quiet", "--workspace", "--bins"]);
    if !smoke {
        build.arg("--release");
    }
    run(&mut build)?;
    Ok(root().join("target").join(form))
}

fn date() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.split('T').next().unwrap_or_default().to_owned()
}

fn processor() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let name = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'));
    Ok(name.map_or_else(|| "processor".to_owned(), |(_, name)| name.trim().to_owned()))
}
