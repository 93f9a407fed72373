//! `cargo xtask bench`: what metaproxy costs, measured on the lab's node with the real programs. Whatever is compared
//! is measured in one run, turn by turn, so that what else the machine does falls on both.

pub mod bare;
mod cached;
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
mod null;
mod plot;
mod report;
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

/// `cargo xtask bench`
#[derive(Clone, Debug, Args)]
pub struct Bench {
    /// Only parts whose name contains this: counts, connects, redirect, cached, cold, footprint, guard
    filter: Option<String>,
    /// Another server of credentials to measure beside: http://HOST:PORT/PATH
    #[arg(long, value_name = "URL")]
    peer: Option<Peer>,
    /// Measure the binaries in this directory (metaproxy, metaproxy-lab and xtask), instead of building
    #[arg(long, value_name = "DIR", conflicts_with = "smoke")]
    binaries: Option<PathBuf>,
    /// In the part `cached`: another build of metaproxy to measure beside
    #[arg(long, value_name = "BINARY")]
    before: Option<PathBuf>,
    /// How often things are compared
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Only see whether it runs: the debug build and little of everything; of its figures only the counts mean anything
    #[arg(long)]
    smoke: bool,
}

/// What runs inside pods.
#[derive(Clone, Debug, Subcommand)]
pub enum Inside {
    /// For use inside a pod of the lab: ask as fast as one is answered
    #[command(name = "bench-load", hide = true)]
    Load(load::Load),
    /// For use inside the lab: a server to compare with
    #[command(name = "bench-bare", hide = true)]
    Bare(bare::Bare),
    /// For use inside the lab: a server that parses nothing, to compare with
    #[command(name = "bench-null", hide = true)]
    Null(bare::Bare),
    /// For use inside a pod of the lab: one answer, as it comes
    #[command(name = "bench-record", hide = true)]
    Record(hold::Hold),
    /// For use inside a pod of the lab: connections that say nothing
    #[command(name = "bench-hold", hide = true)]
    Hold(hold::Hold),
    /// For use inside the lab: takes other traffic
    #[command(name = "bench-sink", hide = true)]
    Sink(traffic::Sink),
    /// For use inside a pod of the lab: other traffic
    #[command(name = "bench-send", hide = true)]
    Send(traffic::Send),
}

/// Runs one of them.
///
/// # Errors
/// Its own.
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

/// The part whose bounds hold in every build and on every machine.
const COUNTS: &str = "counts";

type Part<'a> = (&'static str, &'a dyn Fn(&Site) -> Result<Section>);

/// Builds what is needed, measures, and writes the report. A missed goal is reported and is no failure, except for
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
    let cached = |site: &Site| serving::cached(site, bench.peer.as_ref(), bench.before.as_deref());
    let parts: [Part<'_>; 8] = [
        (COUNTS, &counts::counts),
        ("connects", &connects::elsewhere),
        ("redirect", &connects::redirected),
        ("cached", &cached),
        ("cold", &cold::cold),
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
    // What is not all of it does not take the place of what was.
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
        // A lab for each: what one part leaves in the kernel's tables is not there for the next.
        let site = Site::new(&binaries, effort)?;
        let section = part(&site).with_context(|| format!("the part `{name}`"))?;
        for figure in &section.figures {
            print!("{}", row(figure));
        }
        if name == COUNTS {
            bounded.clone_from(&section.figures);
        }
        report.sections.push(section);
        // What was measured is kept where a later part fails.
        report.write(&partial)?;
    }
    go_on()?;
    ensure!(!report.sections.is_empty(), "no part has a name like that");
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
    ensure!(above.is_empty(), "above what is allowed:\n{}", above.concat());
    if !bench.smoke {
        for figure in report.missed() {
            print!("missed: {}", row(figure));
        }
    }
    Ok(())
}

/// What it is that was measured.
fn form(bench: &Bench) -> String {
    let mut form = match &bench.binaries {
        Some(dir) => format!("the binaries in {}", dir.display()),
        None if bench.smoke => "a debug build that only had to run".to_owned(),
        None => "release build".to_owned(),
    };
    if let Some(before) = &bench.before {
        form.push_str(&format!(", against {}", before.display()));
    }
    form
}

/// Where the binaries are.
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
