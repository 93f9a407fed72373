//! Measures the resources that the agent uses, and how they grow with pods and connections.

use std::collections::BTreeMap;
use std::fs;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::Pod;

use super::cluster::{Cluster, running};
use super::figures::{Curve, Figure, Goal, Plot, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Site, processor_time, start, status, stop, within};

/// The numbers of pods that are measured, each pod with a session. The kubelet's default limit is 110 pods, and EKS
/// allows 250 on large nodes.
const PODS: [usize; 5] = [1, 10, 100, 250, 1000];

/// The number of pods for which there are goals.
const GOAL_AT: usize = 250;

/// The numbers of open, silent connections that are measured.
const IDLE: [usize; 5] = [1, 100, 500, 2000, 8000];

const MIB: f64 = 1024.0;

/// How long it may take until each pod has a session. Beyond the first 250, sessions that no request waits for are
/// fetched at a rate of ten per second.
const SESSIONS_TIMEOUT: Duration = Duration::from_secs(150);

/// How long an agent rests before it is measured, because it first frees memory that only its start needed.
const SETTLE_TIME: Duration = Duration::from_secs(4);

/// The resources that an agent uses.
#[derive(Clone, Copy)]
struct Taken {
    /// Resident memory in MiB.
    resident: f64,
    /// The part of `resident` in MiB that is not pages of the program's file.
    own: f64,
    threads: f64,
    descriptors: f64,
    /// Kernel memory of eBPF programs in KiB.
    programs: f64,
    /// Kernel memory of eBPF maps in KiB.
    maps: f64,
}

impl Taken {
    fn of(agent: &Agent) -> Result<Self> {
        Ok(Self {
            resident: status(agent.pid(), "VmRSS")? as f64 / MIB,
            own: status(agent.pid(), "RssAnon")? as f64 / MIB,
            threads: status(agent.pid(), "Threads")? as f64,
            descriptors: descriptors(agent)? as f64,
            programs: kernel_memory(agent, "bpf-prog")?,
            maps: kernel_memory(agent, "bpf-map")?,
        })
    }
}

/// Returns the kernel memory of the agent's eBPF programs or maps in KiB, as the kernel accounts for it (`memlock` in
/// fdinfo). For a map of socket storage this does not include the storage of sockets.
fn kernel_memory(agent: &Agent, kind: &str) -> Result<f64> {
    let proc = format!("/proc/{}", agent.pid());
    let mut bytes = BTreeMap::new();
    for entry in fs::read_dir(format!("{proc}/fd"))? {
        let path = entry?.path();
        let is_of_kind = fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().ends_with(kind));
        let (Some(number), true) = (path.file_name(), is_of_kind) else {
            continue;
        };
        let info = fs::read_to_string(format!("{proc}/fdinfo/{}", number.display()))?;
        let field = |name: &str| -> Option<u64> {
            let line = info.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().parse().ok()
        };
        let id = field("prog_id").or_else(|| field("map_id"));
        bytes.insert(
            id.context("fdinfo has no id")?,
            field("memlock").context("fdinfo has no memlock")?,
        );
    }
    Ok(bytes.values().sum::<u64>() as f64 / 1024.0)
}

/// The measurements for one number of pods or connections.
struct Footprint {
    number: usize,
    ready_ms: Samples,
    rest: Taken,
    loaded: Taken,
    rate: Samples,
    processor: Samples,
}

pub fn footprint(site: &Site) -> Result<Section> {
    let asking = running(site, "asking")?;
    let cluster = Cluster::new(site)?;
    let mut section = Section {
        title: "Memory, threads, descriptors, start",
        how: "The pods (10 KB each) come from a fake API server (HTTP without TLS), and each has a session of its \
              own. Resources are measured at rest, when all sessions were fetched, and after load, when 32 clients \
              have requested the credentials of one pod. The agent is ready when it serves pods. A silent connection \
              has received one answer and is kept open",
        ..Section::default()
    };
    let (mut known, mut found) = (0, Vec::new());
    for &pods in site.effort.some(&PODS) {
        for number in known..pods {
            let uid = format!("{number:08x}-aaaa-4b7a-9c55-3a2f7f0e8d11");
            let uid = if number == 0 { asking.uid() } else { &uid };
            cluster.put(&format!("web-{number}"), uid);
        }
        known = pods;
        found.push(of_pods(site, &cluster, &asking, pods)?);
    }
    for one in &found {
        figures_of_pods(one, &mut section);
    }
    growth(&found, "pods", |one| one.loaded.own, &mut section);
    plots(&found, "pods with a session", PLOTS_OF_PODS, &mut section);

    let mut found = Vec::new();
    for &connections in site.effort.some(&IDLE) {
        found.push(of_connections(site, &cluster, &asking, connections, known)?);
    }
    for one in &found {
        let of = |what: &str| format!("{} silent connections: {what}", one.number);
        section.figures.extend([
            Figure::once(of("memory"), "MiB", one.loaded.resident),
            Figure::once(
                of("more than without them"),
                "MiB",
                one.loaded.resident - one.rest.resident,
            ),
            Figure::new(of("rate, 32 clients beside them"), "1/s", &one.rate),
            Figure::new(of("processor a request"), "µs", &one.processor),
        ]);
    }
    // Each number of connections is measured with a new agent.
    let own = |one: &Footprint| one.loaded.own - one.rest.own;
    growth(&found, "connections", own, &mut section);
    plots(&found, "silent connections", PLOTS_OF_CONNECTIONS, &mut section);
    Ok(section)
}

fn figures_of_pods(one: &Footprint, section: &mut Section) {
    let of = |what: &str| format!("{} pods: {what}", one.number);
    let at_goal = |figure: Figure, most: f64| {
        if one.number == GOAL_AT {
            figure.with_goal(Goal::AtMost(most))
        } else {
            figure
        }
    };
    section.figures.push(at_goal(
        Figure::new(of("start to ready"), "ms", &one.ready_ms),
        300.0,
    ));
    for (when, taken) in [("at rest", &one.rest), ("after load", &one.loaded)] {
        let of = |what: &str| of(&format!("{what} {when}"));
        section.figures.extend([
            at_goal(Figure::once(of("memory"), "MiB", taken.resident), 25.0),
            Figure::once(of("of that, not of the program's file,"), "MiB", taken.own),
            Figure::once(of("threads"), "", taken.threads),
            Figure::once(of("descriptors"), "", taken.descriptors),
            Figure::once(of("eBPF programs"), "KiB", taken.programs),
            Figure::once(of("eBPF maps"), "KiB", taken.maps),
        ]);
    }
    section.figures.extend([
        Figure::new(of("rate, 32 clients"), "1/s", &one.rate),
        Figure::new(of("processor a request"), "µs", &one.processor),
    ]);
}

/// Adds the memory that one more pod or connection costs, for each step between two numbers. If this cost rises,
/// memory grows faster than linearly. The first pods or connections reuse memory that the start has left free.
fn growth(found: &[Footprint], of: &str, value: fn(&Footprint) -> f64, section: &mut Section) {
    for pair in found.windows(2) {
        let more = (pair[1].number - pair[0].number) as f64;
        section.figures.push(Figure::once(
            format!(
                "memory of one more of the {of}, {} to {}",
                pair[0].number, pair[1].number
            ),
            "KiB",
            (value(&pair[1]) - value(&pair[0])) * 1024.0 / more,
        ));
    }
}

/// The names and titles of the plots of memory, rate and processor time, in this order.
type Titles = [(&'static str, &'static str); 3];

const PLOTS_OF_PODS: Titles = [
    ("memory-by-pods", "Resident memory"),
    ("rate-by-pods", "Cached credentials, 32 clients"),
    ("processor-by-pods", "Processor time of a request, 32 clients"),
];

const PLOTS_OF_CONNECTIONS: Titles = [
    (
        "memory-by-connections",
        "Resident memory beside silent connections",
    ),
    ("rate-by-connections", "32 clients beside silent connections"),
    (
        "processor-by-connections",
        "Processor time of a request beside silent connections",
    ),
];

fn plots(found: &[Footprint], x: &'static str, [memory, rate, processor]: Titles, section: &mut Section) {
    let curve = |name: &str, value: &dyn Fn(&Footprint) -> f64| Curve {
        name: name.to_owned(),
        points: found.iter().map(|one| (one.number as f64, value(one))).collect(),
    };
    let all = [
        (
            memory,
            "MiB",
            vec![
                curve("before load", &|one| one.rest.resident),
                curve("after load", &|one| one.loaded.resident),
            ],
        ),
        (
            rate,
            "requests a second",
            vec![curve("metaproxy", &|one| one.rate.median())],
        ),
        (
            processor,
            "µs",
            vec![curve("metaproxy", &|one| one.processor.median())],
        ),
    ];
    let plots = all.into_iter().map(|((name, title), y, curves)| Plot {
        name,
        title,
        x,
        y,
        curves,
    });
    section.plots.extend(plots);
}

fn of_pods(site: &Site, cluster: &Cluster, asking: &Pod, pods: usize) -> Result<Footprint> {
    let mut ready_ms = Samples::default();
    for _ in 1..site.effort.rounds {
        let (agent, took) = timed_start(site, cluster)?;
        ready_ms.push(took);
        stop(agent)?;
    }
    let (agent, took) = served(site, cluster, pods)?;
    ready_ms.push(took);
    let rest = Taken::of(&agent)?;
    let (rate, processor) = load(site, &agent, asking)?;
    let footprint = Footprint {
        number: pods,
        ready_ms,
        rest,
        loaded: Taken::of(&agent)?,
        rate,
        processor,
    };
    stop(agent)?;
    Ok(footprint)
}

/// Measures an agent with this number of silent connections.
fn of_connections(
    site: &Site,
    cluster: &Cluster,
    asking: &Pod,
    connections: usize,
    pods: usize,
) -> Result<Footprint> {
    let (agent, took) = served(site, cluster, pods)?;
    let mut ready_ms = Samples::default();
    ready_ms.push(took);
    let rest = Taken::of(&agent)?;
    let before = descriptors(&agent)?;
    let clients = connections.to_string();
    let words = ["--to", IMDS, "--path", CREDENTIALS, "--clients", &clients];
    let mut holding = Held(start(
        &mut site.in_pod(asking, &[&["bench-hold"], &words[..]].concat())?,
    )?);
    within(Duration::from_secs(60), "connections that are open", || {
        Ok(descriptors(&agent)? >= before + connections)
    })?;
    let (rate, processor) = load(site, &agent, asking)?;
    let loaded = Taken::of(&agent)?;
    ensure!(
        holding.0.try_wait()?.is_none() && descriptors(&agent)? >= before + connections,
        "silent connections were closed"
    );
    drop(holding);
    stop(agent)?;
    Ok(Footprint {
        number: connections,
        ready_ms,
        rest,
        loaded,
        rate,
        processor,
    })
}

/// A client that holds connections until it is dropped.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures the rate and the processor time of a request with 32 clients, once for each round.
fn load(site: &Site, agent: &Agent, asking: &Pod) -> Result<(Samples, Samples)> {
    let (mut rate, mut processor) = (Samples::default(), Samples::default());
    let millis = site.effort.millis.to_string();
    let words = [
        "--to",
        IMDS,
        "--path",
        CREDENTIALS,
        "--clients",
        "32",
        "--millis",
        &millis,
    ];
    for _ in 0..site.effort.rounds {
        let before = processor_time(agent.pid())?;
        let outcome = site.load(asking, &words)?;
        let spent = processor_time(agent.pid())? - before;
        rate.push(outcome.rate());
        // `done` does not include the requests of the first tenth of the time.
        processor.push(spent.as_secs_f64() * 1e6 * 0.9 / outcome.done as f64);
    }
    std::thread::sleep(Duration::from_millis(500));
    Ok((rate, processor))
}

/// Starts an agent, and waits until it has a session for each pod. Returns it with the milliseconds until it was
/// ready.
fn served(site: &Site, cluster: &Cluster, pods: usize) -> Result<(Agent, f64)> {
    let calls = site.sts.calls().len();
    let (agent, took) = timed_start(site, cluster)?;
    within(SESSIONS_TIMEOUT, "a session for each pod", || {
        Ok(site.sts.calls().len() >= calls + pods)
    })?;
    std::thread::sleep(SETTLE_TIME);
    Ok((agent, took))
}

fn timed_start(site: &Site, cluster: &Cluster) -> Result<(Agent, f64)> {
    let start = Instant::now();
    let agent = Agent::start(&site.lab, &cluster.spec)?;
    Ok((agent, start.elapsed().as_secs_f64() * 1000.0))
}

fn descriptors(agent: &Agent) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count())
}
