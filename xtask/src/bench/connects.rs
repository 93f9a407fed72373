//! What connections elsewhere, and those that are redirected, cost.

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

/// Each thing that is compared has a port of its own (facts about connections live on in the kernel).
const ELSEWHERE: u16 = 7001;
const BARE: u16 = 7002;
const BEHIND_RULE: u16 = 8181;

/// Short turns for each round.
const SHORT_TURNS: usize = 20;

/// connect() to another address, with and without the agent.
pub fn elsewhere(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::without_role("elsewhere"))?;
    let answer = site.lab.dir().join("nothing");
    fs::write(&answer, "HTTP/1.1 200 OK\r\n\r\n")?;
    let _server = site.bare(site.lab.node(), at_node(ELSEWHERE), &answer)?;
    let to = at_node(ELSEWHERE).to_string();
    let netns = pod.netns().context("a pod with a network namespace of its own")?;
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
        how: "connections from a pod's network namespace to a server of the node that is not the agent; medians of single \
              connect() calls. In short turns by processes in the pods' cgroup, to which the programs are attached, and by \
              processes outside of it, so that a machine that is faster now and slower then does the same to both; likewise \
              without an agent, for what else may lie between the two cgroups",
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

/// What the kernel's own statistics say of each of our programs while this is done, and how often each has run for one
/// of what was done as often as `work` says. That statistics are kept is part of the time.
pub fn programs(one: &str, work: &mut dyn FnMut() -> Result<f64>) -> Result<Vec<Figure>> {
    let counting = enable_stats(Stats::RunTime).context("the kernel's statistics of programs")?;
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
    ensure!(!figures.is_empty(), "no program of ours has run");
    Ok(figures)
}

/// connect, request, answer, close: directly, redirected, and by the rule that kube2iam makes.
pub fn redirected(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("asking", "app"))?;
    let mut taken = [const { None::<Samples> }; 5].map(Option::unwrap_or_default);
    for round in 0..site.effort.rounds * 2 {
        // Where a process lies in memory makes it faster or slower for all of its life: each round has new ones.
        five_ways(site, &pod, round, &mut taken)?;
    }
    let [direct, redirected, bare, behind, by_rule] = taken;
    let mut section = Section {
        title: "connect + GET + close",
        how: "from a pod's network namespace, one at a time, cached credentials, medians of single requests. Redirected or \
              not it is the agent that answers and finds out who asks, so that their ratio is what the redirection alone \
              costs. The rule (iptables, PREROUTING, DNAT) is in a node of its own with a bare server behind it, and so is \
              the bare server without a rule: their ratio is the rule's cost, and that of the kernel's connection tracking, \
              which comes with it",
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

/// One round: directly, redirected, a bare server, one without a rule, one with it.
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

/// Another node, with a bare server: what a rule does to the kernel must be done neither to the agent's node nor to
/// what the rule is compared with.
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

    /// As kube2iam has it (iptables/iptables.go), with its `--host-interface cali+`.
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
