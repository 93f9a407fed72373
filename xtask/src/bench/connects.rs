//! Measures the cost of connections to other addresses, and of redirected connections.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use metaproxy_common::names;
use metaproxy_lab::netns::{Netns, ip};
use metaproxy_lab::pod::{Pod, PodSpec};

use super::figures::{Figure, Goal, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Process, Site, at_node, listener, no_time_wait, stop};

// Each server that is compared has its own port, because the kernel keeps state of earlier connections.
const ELSEWHERE: u16 = 7001;
const BARE: u16 = 7002;
const BEHIND_RULE: u16 = 8181;

/// The number of pairs of short measurements in each round.
const SHORT_TURNS: usize = 20;

/// Measures connect() to another address, with and without the agent.
pub fn elsewhere(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::without_role("elsewhere"))?;
    let answer = site.lab.dir().join("nothing");
    fs::write(&answer, "HTTP/1.1 200 OK\r\n\r\n")?;
    let _server = site.bare(site.lab.node(), at_node(ELSEWHERE), &answer)?;
    let to = at_node(ELSEWHERE).to_string();
    let netns = pod.netns().context("the pod has no network namespace")?;
    let connect = |inside: bool, count: usize| {
        let count = count.to_string();
        let words = ["--to", &to, "--count", &count, "--each", "connect"];
        let outcome = match inside {
            true => site.load(&pod, &words),
            false => site.load_in(netns, &words),
        };
        outcome.map(|outcome| outcome.p50)
    };
    let all = site.effort.connections;
    let short = |inside: &mut Samples, outside: &mut Samples| -> Result<()> {
        for turn in 0..SHORT_TURNS {
            for is_inside in [turn % 2 == 0, turn % 2 != 0] {
                let samples = if is_inside { &mut *inside } else { &mut *outside };
                samples.push(connect(is_inside, all / 5)?);
            }
        }
        Ok(())
    };
    connect(true, all)?;
    let (mut inside, mut outside) = (Samples::default(), Samples::default());
    let (mut free_inside, mut free_outside) = (Samples::default(), Samples::default());
    for _ in 0..site.effort.rounds {
        short(&mut free_inside, &mut free_outside)?;
        let agent = site.agent(&[])?;
        short(&mut inside, &mut outside)?;
        stop(agent)?;
    }
    let (attached, free) = (inside.over(&outside), free_inside.over(&free_outside));
    let mut section = Section {
        title: "connect() to another address",
        how: "Medians of single connect() calls from a pod's network namespace to a server of the node that is not \
              the agent. Processes inside the pods' cgroup, to which the programs are attached, and processes \
              outside it connect in short alternating turns, so that changes in the machine's speed affect both. The \
              same is measured without an agent, because the two cgroups may also differ in other ways",
        figures: vec![
            Figure::new("outside of the pods' cgroup, no agent", "µs", &free_outside),
            Figure::new("inside, no agent", "µs", &free_inside),
            Figure::new("outside, agent attached", "µs", &outside),
            Figure::new("inside, agent attached", "µs", &inside),
            Figure::new("inside / outside, no agent", "ratio", &free),
            Figure::new("inside / outside, agent attached", "ratio", &attached),
            Figure::new(
                "attached / not attached",
                "ratio",
                &attached.over_median_of(&free),
            )
            .with_goal(Goal::AtMost(1.01)),
        ],
        plots: Vec::new(),
    };
    let agent = site.agent(&[])?;
    let connections = all as f64;
    section.figures.extend(programs("a connection", &mut || {
        connect(true, all).map(|_| connections)
    })?);
    stop(agent)?;
    Ok(section)
}

/// Runs `work` while the kernel keeps statistics of eBPF programs. Returns for each of metaproxy's programs the time
/// of one run, and the number of runs for one operation. `work` returns how many operations it did; `one` is the name
/// of an operation. The time includes the cost of the statistics.
pub fn programs(one: &str, work: &mut dyn FnMut() -> Result<f64>) -> Result<Vec<Figure>> {
    let counting =
        enable_stats(Stats::RunTime).context("cannot enable the kernel's statistics of programs")?;
    let times = work()?;
    let mut figures = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let runs = program.run_count();
        if name.starts_with(names::PREFIX) && runs > 0 {
            let each = program.run_time().as_nanos() as f64 / runs as f64;
            figures.push(Figure::once(format!("`{name}`, a run"), "ns", each));
            figures.push(Figure::once(
                format!("`{name}`, runs for {one}"),
                "",
                runs as f64 / times,
            ));
        }
    }
    drop(counting);
    ensure!(!figures.is_empty(), "no program of metaproxy has run");
    Ok(figures)
}

/// Measures connections with one request each: direct, redirected, and by the rule that kube2iam makes.
pub fn redirected(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("asking", "app"))?;
    let mut taken = [const { None::<Samples> }; 5].map(Option::unwrap_or_default);
    for round in 0..site.effort.rounds * 2 {
        // A process's memory layout makes it faster or slower for its whole life, so each round starts new processes.
        five_ways(site, &pod, round, &mut taken)?;
    }
    let [direct, redirected, bare, behind, by_rule] = taken;
    let mut section = Section {
        title: "connect + GET + close",
        how: "Medians of single requests for cached credentials, one at a time, from a pod's network namespace. The \
              agent answers and identifies the client in both cases, directly and redirected, so their ratio is the \
              cost of the redirection alone. The rule (iptables, PREROUTING, DNAT) is on a node of its own with a \
              bare server behind it. The bare server without a rule is on another node of its own. The ratio of \
              these two is the cost of the rule, which includes the kernel's connection tracking",
        figures: vec![
            Figure::new("to the agent's listener, directly", "µs", &direct),
            Figure::new("redirected to it", "µs", &redirected),
            Figure::new("redirected / directly", "ratio", &redirected.over(&direct))
                .with_goal(Goal::AtMost(1.05)),
            Figure::new(
                "to a bare hyper server, which does not identify its clients",
                "µs",
                &bare,
            ),
            Figure::new(
                "redirected to the agent / bare server",
                "ratio",
                &redirected.over(&bare),
            ),
            Figure::new("to a bare server of a node without a rule", "µs", &behind),
            Figure::new("to one by kube2iam's rule", "µs", &by_rule),
            Figure::new("by the rule / without a rule", "ratio", &by_rule.over(&behind)),
        ],
        plots: Vec::new(),
    };
    let agent = site.agent(&[])?;
    let connections = site.effort.connections;
    let count = connections.to_string();
    let words = [
        "--to",
        IMDS,
        "--path",
        CREDENTIALS,
        "--each",
        "connection",
        "--count",
    ];
    section
        .figures
        .extend(programs("a redirected connection", &mut || {
            site.load(&pod, &[&words[..], &[&count]].concat())?;
            Ok(connections as f64)
        })?);
    stop(agent)?;
    Ok(section)
}

/// Measures one round of requests: directly, redirected, to a bare server, and to bare servers of other nodes without
/// and with a rule.
fn five_ways(site: &Site, pod: &Pod, round: usize, taken: &mut [Samples; 5]) -> Result<()> {
    let agent = site.agent(&[])?;
    let answer = site.record(pod, CREDENTIALS)?;
    let _bare = site.bare(site.lab.node(), at_node(BARE), &answer)?;
    let plain = Elsewhere::new(site, "plain", &answer)?;
    let ruled = Elsewhere::new(site, "ruled", &answer)?;
    ruled.add_rule()?;
    let count = site.effort.connections.to_string();
    let words = |to: &str| {
        let words = [
            "--to",
            to,
            "--path",
            CREDENTIALS,
            "--each",
            "connection",
            "--count",
        ];
        let words = words.into_iter().chain([count.as_str()]);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let (direct, bare) = (listener(&agent)?.to_string(), at_node(BARE).to_string());
    let ask = |to: &str| -> Result<f64> {
        let words = words(to);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(site.load(pod, &words)?.p50)
    };
    let ask_there = |node: &Elsewhere, to: &str| -> Result<f64> {
        let words = words(to);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(site.load_in(&node.pod, &words)?.p50)
    };
    let behind = plain.server.to_string();
    let ways: [&dyn Fn() -> Result<f64>; 5] = [
        &|| ask(&direct),
        &|| ask(IMDS),
        &|| ask(&bare),
        &|| ask_there(&plain, &behind),
        &|| ask_there(&ruled, IMDS),
    ];
    for turn in 0..ways.len() {
        let way = (round + turn) % ways.len();
        taken[way].push(ways[way]()?);
    }
    stop(agent)
}

/// Another node with a bare server. A rule affects all connections of its node, so it must be neither on the agent's
/// node nor on the node that it is compared with.
struct Elsewhere {
    pod: Netns,
    server: SocketAddr,
    node: Netns,
    _server: Process,
}

impl Elsewhere {
    fn new(site: &Site, name: &str, answer: &Path) -> Result<Self> {
        let own = |part: &str| format!("{}-{name}{part}", site.lab.name());
        let (node, pod) = (Netns::new(&own(""))?, Netns::new(&own("-pod"))?);
        let ends = [
            "link", "add", "cali0", "type", "veth", "peer", "name", "eth0", "netns",
        ];
        ip(&[&["-n", node.name()], &ends[..], &[pod.name()]].concat())?;
        for (netns, device, address) in [(&node, "cali0", "10.245.0.1/30"), (&pod, "eth0", "10.245.0.2/30")] {
            netns.add_address(device, address)?;
            ip(&["-n", netns.name(), "link", "set", device, "up"])?;
        }
        ip(&["-n", pod.name(), "route", "add", "default", "via", "10.245.0.1"])?;
        no_time_wait(&pod)?;
        let server: SocketAddr = format!("10.245.0.1:{BEHIND_RULE}").parse()?;
        let process = site.bare(&node, server, answer)?;
        Ok(Self {
            pod,
            server,
            node,
            _server: process,
        })
    }

    /// Adds the rule that kube2iam makes (iptables/iptables.go) with `--host-interface cali+`.
    fn add_rule(&self) -> Result<()> {
        let words = "-w -t nat -A PREROUTING -p tcp -d 169.254.169.254/32 --dport 80 -i cali+ -j DNAT --to-destination";
        let status = Command::new("ip")
            .args(["netns", "exec", self.node.name(), "iptables"])
            .args(words.split(' '))
            .arg(self.server.to_string())
            .status()
            .context("cannot run iptables")?;
        ensure!(status.success(), "iptables: {status}");
        Ok(())
    }
}
