//! Measures how a pod's flood affects a neighbour's new connections to the agent, and to a bare server under the same
//! flood. The bare server shows the part that is caused by the kernel and by the two processors.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result};
use metaproxy_lab::netns::{Netns, ip};
use metaproxy_lab::pod::{Pod, PodSpec};

use super::figures::{Figure, Goal, Samples, Section};
use super::load::Outcome;
use super::site::{CREDENTIALS, IMDS, Process, Site, at_node, collect, listener, start, stop};

/// The port of the first flood's bare server. Each further flood uses the next port, because the kernel's tables
/// still contain entries of the last flood.
const BARE: u16 = 7010;

/// The pause between two connections of the neighbour, in milliseconds, so that the neighbour does not load the node.
const PAUSE: &str = "2";

/// The first source address of spoofed SYNs: 198.18.0.0/15 is reserved for benchmarks (RFC 2544).
const SPOOFED: &str = "198.18.0.0";

/// How long a flood runs before the measurement, so that it has filled the queues and tables.
const START_TIME: Duration = Duration::from_secs(1);

/// The floods, each with its name in the report.
const FLOODS: [(&str, Flood); 4] = [
    ("SYNs from 65,536 addresses", Flood::SpoofedSyns),
    ("half-open connections", Flood::Connects("half-open")),
    ("50,000 connects a second", Flood::Connects("connect")),
    ("10,000 held connections", Flood::Connects("hold")),
];

#[derive(Clone, Copy)]
enum Flood {
    SpoofedSyns,
    /// A flood of connections, with its command of `metaproxy-lab attack`.
    Connects(&'static str),
}

/// A neighbour's connections to one server: 99th percentiles in microseconds, and the number of failures.
#[derive(Default)]
struct Beside {
    quiet: Samples,
    flooded: Samples,
    failed: usize,
}

impl Beside {
    fn add(&mut self, quiet: &Outcome, flooded: &Outcome) {
        self.quiet.push(quiet.p99);
        self.flooded.push(flooded.p99);
        self.failed += quiet.failed + flooded.failed;
    }
}

pub fn floods(site: &Site) -> Result<Section> {
    let bad = site.pod(PodSpec::with_role("bad", "app"))?;
    let neighbour = site.pod(PodSpec::with_role("neighbour", "app"))?;
    let_spoofed_packets_in(site, &bad)?;
    let mut section = Section {
        title: "A neighbour beside floods",
        how: "A pod opens a new connection every 2 ms and requests cached credentials on each. The figures are 99th \
              percentiles before a flood by another pod and beside it. The agent has its default limits. The bare \
              server gets the same flood without the agent and without any limit. Its figures show the effect on any \
              server of the node, because the flood uses the same kernel and the same processors",
        ..Section::default()
    };
    for (number, (name, flood)) in FLOODS.into_iter().enumerate() {
        let (mut agent, mut bare) = (Beside::default(), Beside::default());
        for _ in 0..site.effort.rounds {
            let running = site.agent_with_limits()?;
            let answer = site.record(&neighbour, CREDENTIALS)?;
            let imds = IMDS.parse()?;
            let (quiet, flooded) = one(site, &bad, &neighbour, flood, imds, listener(&running)?)?;
            agent.add(&quiet, &flooded);
            stop(running)?;
            let at = at_node(BARE + number as u16);
            let _server = site.bare(site.lab.node(), at, &answer)?;
            let (quiet, flooded) = one(site, &bad, &neighbour, flood, at, at)?;
            bare.add(&quiet, &flooded);
        }
        let of = |what: &str| format!("{name}: {what}");
        section.figures.extend([
            Figure::new(of("p99 before it"), "µs", &agent.quiet),
            Figure::new(of("p99 beside it"), "µs", &agent.flooded),
            Figure::new(of("beside / before"), "ratio", &agent.flooded.over(&agent.quiet))
                .with_goal(Goal::AtMost(2.0)),
            Figure::once(of("connections that failed"), "", agent.failed as f64).with_goal(Goal::AtMost(0.0)),
            Figure::new(
                of("beside / before, bare server"),
                "ratio",
                &bare.flooded.over(&bare.quiet),
            ),
            Figure::once(of("connections that failed, bare server"), "", bare.failed as f64),
        ]);
    }
    Ok(section)
}

/// Measures the neighbour's connections before the flood, and beside it.
fn one(
    site: &Site,
    bad: &Pod,
    neighbour: &Pod,
    flood: Flood,
    to: SocketAddr,
    listener: SocketAddr,
) -> Result<(Outcome, Outcome)> {
    let millis = (site.effort.millis * 2).to_string();
    let to = to.to_string();
    let words = [
        "bench-load",
        "--to",
        &to,
        "--path",
        CREDENTIALS,
        "--each",
        "connection",
        "--pause",
        PAUSE,
        "--millis",
        &millis,
    ];
    let look = || collect(start(&mut site.in_pod(neighbour, &words)?)?);
    let quiet = look()?;
    let listener = listener.to_string();
    let attack = match flood {
        Flood::SpoofedSyns => vec![
            "--privileges",
            "default",
            "syn-flood",
            "--listener",
            &listener,
            "--source",
            SPOOFED,
        ],
        Flood::Connects(kind) => vec!["--privileges", "none", kind, "--to", &to],
    };
    let _attacker = Process::spawn(site.attack(bad, &attack)?.stdout(Stdio::null()))?;
    std::thread::sleep(START_TIME);
    Ok((quiet, look()?))
}

/// Makes the node accept spoofed packets, as a node does that does not filter by source address. Answers to spoofed
/// addresses are routed to the pod, which drops them.
fn let_spoofed_packets_in(site: &Site, bad: &Pod) -> Result<()> {
    let node: &Netns = site.lab.node();
    let back = bad.ip().to_string();
    let network = format!("{SPOOFED}/16");
    ip(&["-n", node.name(), "route", "replace", &network, "via", &back])?;
    for device in ["all", &format!("pod{}", bad.number())] {
        node.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")?;
    }
    bad.netns()
        .context("a pod with a network namespace of its own")?
        .sysctl("net/ipv4/ip_forward", "0")
}
