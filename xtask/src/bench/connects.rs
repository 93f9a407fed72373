//! What connections elsewhere, and those that are redirected, cost.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use aya::programs::loaded_programs;
use aya::sys::{Stats, enable_stats};
use metaproxy_common::names;
use xtask::lab::netns::{Netns, ip};
use xtask::lab::pod::PodSpec;

use super::figures::{Figure, Goal, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Site, at_node, listener, no_time_wait};

/// Each thing that is compared has a port of its own (facts about connections live on in the kernel).
const ELSEWHERE: u16 = 7001;
const BARE: u16 = 7002;
const BEHIND_RULE: u16 = 8181;

/// connect() to another address, with and without the agent.
pub fn elsewhere(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::without_role("elsewhere"))?;
    let answer = site.lab.dir().join("nothing");
    fs::write(&answer, "HTTP/1.1 200 OK\r\n\r\n")?;
    let _server = site.bare(site.lab.node(), at_node(ELSEWHERE), &answer)?;
    let (to, count) = (
        at_node(ELSEWHERE).to_string(),
        site.effort.connections.to_string(),
    );
    let connect = || {
        let words = ["--to", &to, "--count", &count, "--each", "connect"];
        site.load(&pod, &words).map(|outcome| outcome.p50)
    };
    connect()?;
    let (mut with, mut without) = (Samples::default(), Samples::default());
    for round in 0..site.effort.rounds * 2 {
        // One is the first in every other round.
        for attached in [round % 2 == 0, round % 2 != 0] {
            if attached {
                let mut agent = site.agent(&[])?;
                with.push(connect()?);
                agent.stop()?;
            } else {
                without.push(connect()?);
            }
        }
    }
    let mut section = Section {
        title: "connect() to another address",
        how: "a pod connects to a server of the node that is not the agent; the agent is started and stopped again in \
              each round; medians of single connect() calls",
        figures: vec![
            Figure::new("not attached", "µs", &without),
            Figure::new("attached", "µs", &with),
            Figure::new("attached / not attached", "ratio", &with.over(&without))
                .with_goal(Goal::AtMost(1.01)),
        ],
        plots: Vec::new(),
    };
    section
        .figures
        .extend(programs(site, &mut || connect().map(drop))?);
    Ok(section)
}

/// What the kernel's own statistics say of each of our programs while this is done; their keeping is part of it.
fn programs(site: &Site, work: &mut dyn FnMut() -> Result<()>) -> Result<Vec<Figure>> {
    let mut agent = site.agent(&[])?;
    let counting = enable_stats(Stats::RunTime).context("the kernel's statistics of programs")?;
    work()?;
    let mut figures = Vec::new();
    for program in loaded_programs() {
        let program = program?;
        let name = program.name_as_str().unwrap_or_default().to_owned();
        let runs = program.run_count();
        if name.starts_with(names::PREFIX) && runs > 0 {
            let each = program.run_time().as_nanos() as f64 / runs as f64;
            figures.push(Figure::once(format!("`{name}`, a run"), "ns", each));
            let per_connection = runs as f64 / site.effort.connections as f64;
            figures.push(Figure::once(
                format!("`{name}`, runs a connection"),
                "",
                per_connection,
            ));
        }
    }
    drop(counting);
    agent.stop()?;
    ensure!(!figures.is_empty(), "no program of ours has run");
    Ok(figures)
}

/// connect, request, answer, close: directly, redirected, and by the rule that kube2iam makes.
pub fn redirected(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("asking", "app"))?;
    let agent = site.agent(&[])?;
    let answer = site.record(&pod, CREDENTIALS)?;
    let _bare = site.bare(site.lab.node(), at_node(BARE), &answer)?;
    let rule = Rule::new(site, &answer)?;

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
        Ok(site.load(&pod, &words)?.p50)
    };
    let ask_there = |to: &str| -> Result<f64> {
        let words = words(to);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Ok(site.load_in(&rule.pod, &words)?.p50)
    };
    let behind = rule.server.to_string();
    let ways: [&dyn Fn() -> Result<f64>; 5] = [
        &|| ask(&direct),
        &|| ask(IMDS),
        &|| ask(&bare),
        &|| ask_there(&behind),
        &|| ask_there(IMDS),
    ];
    let mut taken = [const { None::<Samples> }; 5].map(Option::unwrap_or_default);
    for round in 0..site.effort.rounds * 2 {
        for turn in 0..ways.len() {
            let way = (round + turn) % ways.len();
            taken[way].push(ways[way]()?);
        }
    }
    let [direct, redirected, bare, behind, by_rule] = taken;
    Ok(Section {
        title: "connect + GET + close",
        how: "from a pod's network namespace, one at a time, cached credentials; the rule (iptables, PREROUTING, DNAT) in a \
              node of its own with the same bare server behind it; medians of single requests",
        figures: vec![
            Figure::new("to the agent's listener, directly", "µs", &direct),
            Figure::new("redirected to it", "µs", &redirected),
            Figure::new("redirected / directly", "ratio", &redirected.over(&direct))
                .with_goal(Goal::AtMost(1.05)),
            Figure::new(
                "to a bare hyper server, which asks nobody who is calling",
                "µs",
                &bare,
            ),
            Figure::new(
                "redirected to the agent / bare server",
                "ratio",
                &redirected.over(&bare),
            ),
            Figure::new("to the bare server behind the rule, directly", "µs", &behind),
            Figure::new("to it by the rule", "µs", &by_rule),
            Figure::new("by the rule / directly", "ratio", &by_rule.over(&behind)),
        ],
        plots: Vec::new(),
    })
}

/// A second node, with kube2iam's rule: what that one does to the kernel must not be done to the first.
struct Rule {
    pod: Netns,
    server: SocketAddr,
    _server: super::site::Process,
    _node: Netns,
}

impl Rule {
    fn new(site: &Site, answer: &Path) -> Result<Self> {
        let name = |part: &str| format!("{}-{part}", site.lab.name());
        let (node, pod) = (Netns::new(&name("rule"))?, Netns::new(&name("ruled"))?);
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
        // As kube2iam has it (iptables/iptables.go), with its `--host-interface cali+`.
        let words = "-w -t nat -A PREROUTING -p tcp -d 169.254.169.254/32 --dport 80 -i cali+ -j DNAT --to-destination";
        let status = Command::new("ip")
            .args(["netns", "exec", node.name(), "iptables"])
            .args(words.split(' '))
            .arg(server.to_string())
            .status()
            .context("cannot run iptables")?;
        ensure!(status.success(), "iptables: {status}");
        Ok(Self {
            pod,
            server,
            _server: process,
            _node: node,
        })
    }
}
