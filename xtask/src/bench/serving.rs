//! How fast cached credentials are served, beside a bare hyper server and any other that is given.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum as _;
use hyper::Uri;
use xtask::lab::netns::Netns;
use xtask::lab::pod::{Pod, PodSpec};

use super::figures::{Curve, Figure, Goal, Plot, Samples, Section};
use super::load::{Each, Outcome};
use super::site::{CREDENTIALS, IMDS, Site, at_node, listener, processor_time};

const BARE: u16 = 7003;

const BARE_NAME: &str = "bare hyper";

/// Clients at a time.
const CLIENTS: [usize; 6] = [32, 1, 8, 64, 128, 256];

/// The number of clients for which there are goals.
const GOAL_AT: usize = 32;

/// Three times what kube2iam serves with two processors and 32 connections, measured elsewhere (14,100 a second).
const GOAL_RATE: f64 = 3.0 * 14_100.0;

/// A server to ask.
struct Server<'a> {
    name: String,
    to: String,
    path: String,
    /// From a pod, or from this machine's own namespace.
    from: Option<&'a Pod>,
    pid: Option<u32>,
}

#[derive(Default)]
struct Taken {
    rate: Samples,
    p50: Samples,
    p99: Samples,
    processor: Samples,
}

impl Server<'_> {
    fn ask(&self, site: &Site, each: Each, clients: usize) -> Result<(Outcome, Option<f64>)> {
        let each = each.to_possible_value().context("a name")?;
        let (clients, millis) = (clients.to_string(), site.effort.millis.to_string());
        let words = [
            "--to",
            &self.to,
            "--path",
            &self.path,
            "--clients",
            &clients,
            "--each",
            each.get_name(),
            "--millis",
            &millis,
        ];
        let before = self.pid.map(processor_time).transpose()?;
        let outcome = match self.from {
            Some(pod) => site.load(pod, &words)?,
            None => site.load_in(&Netns::of_this_process()?, &words)?,
        };
        let after = self.pid.map(processor_time).transpose()?;
        // A tenth of the requests is not counted as done.
        let spent = before
            .zip(after)
            .map(|(before, after)| (after - before).as_secs_f64() * 1e6 * 0.9 / outcome.done as f64);
        Ok((outcome, spent))
    }
}

/// All of it; the peer is an `http://ADDRESS:PORT/PATH`, `before` another binary of the agent, which is then asked as
/// this one is: at its listener, as only one of two is redirected to.
pub fn cached(site: &Site, peer: Option<&Uri>, before: Option<&Path>) -> Result<Section> {
    let pod = site.pod(PodSpec::with_role("busy", "app"))?;
    let agent = site.agent(&[])?;
    let other = before.map(|binary| site.agent_of(binary)).transpose()?;
    let to = match before {
        Some(_) => listener(&agent)?.to_string(),
        None => IMDS.to_owned(),
    };
    let answer = site.record(&pod, CREDENTIALS)?;
    let bare = site.bare(site.lab.node(), at_node(BARE), &answer)?;
    let mut servers = vec![
        Server {
            name: "metaproxy".to_owned(),
            to,
            path: CREDENTIALS.to_owned(),
            from: Some(&pod),
            pid: Some(agent.pid()),
        },
        Server {
            name: BARE_NAME.to_owned(),
            to: at_node(BARE).to_string(),
            path: CREDENTIALS.to_owned(),
            from: Some(&pod),
            pid: Some(bare.pid()),
        },
    ];
    if let Some(other) = &other {
        servers.push(Server {
            name: "metaproxy before".to_owned(),
            to: listener(other)?.to_string(),
            path: CREDENTIALS.to_owned(),
            from: Some(&pod),
            pid: Some(other.pid()),
        });
    }
    if let Some(peer) = peer {
        let authority = peer.authority().context("--peer: which server?")?;
        servers.push(Server {
            name: format!("peer {authority}"),
            to: authority.to_string(),
            path: peer.path().to_owned(),
            from: None,
            pid: None,
        });
    }
    let mut section = Section {
        title: "Cached credentials",
        how: "clients in a pod that ask again as soon as they are answered, on the same processors as the server; the bare \
              server is hyper on the same runtime, which answers the same bytes and asks nothing; a peer is asked from \
              this machine's own network namespace; processor time is that of the server's process",
        ..Section::default()
    };
    for (each, what, name) in [
        (Each::Keep, "kept open", "cached-kept-open"),
        (Each::Connection, "a connection each", "cached-connection-each"),
    ] {
        measure(site, &servers, each, what, name, &mut section)?;
    }
    Ok(section)
}

fn measure(
    site: &Site,
    servers: &[Server<'_>],
    each: Each,
    what: &str,
    name: &'static str,
    section: &mut Section,
) -> Result<()> {
    let mut curves: Vec<Curve> = servers
        .iter()
        .map(|server| Curve {
            name: server.name.clone(),
            points: Vec::new(),
        })
        .collect();
    for &clients in site.effort.some(&CLIENTS) {
        let mut taken: Vec<Taken> = servers.iter().map(|_| Taken::default()).collect();
        for round in 0..site.effort.rounds {
            for turn in 0..servers.len() {
                let index = (round + turn) % servers.len();
                let (outcome, processor) = servers[index].ask(site, each, clients)?;
                let taken = &mut taken[index];
                taken.rate.push(outcome.rate());
                taken.p50.push(outcome.p50);
                taken.p99.push(outcome.p99);
                if let Some(processor) = processor {
                    taken.processor.push(processor);
                }
            }
        }
        for ((server, taken), curve) in servers.iter().zip(&taken).zip(&mut curves) {
            let what = format!("{what}, {clients} clients, {}", server.name);
            curve.points.push((clients as f64, taken.rate.median()));
            section
                .figures
                .push(Figure::new(format!("{what}: rate"), "1/s", &taken.rate));
            section
                .figures
                .push(Figure::new(format!("{what}: p50"), "µs", &taken.p50));
            section
                .figures
                .push(Figure::new(format!("{what}: p99"), "µs", &taken.p99));
            if server.pid.is_some() {
                let processor = Figure::new(format!("{what}: processor a request"), "µs", &taken.processor);
                section.figures.push(processor);
            }
        }
        for (server, other) in servers.iter().zip(&taken).skip(1) {
            let ratio = taken[0].rate.over(&other.rate);
            let ratio = Figure::new(
                format!("{what}, {clients} clients: rate, metaproxy / {}", server.name),
                "ratio",
                &ratio,
            );
            let has_goal = clients == GOAL_AT && each == Each::Keep && server.name == BARE_NAME;
            section.figures.push(if has_goal {
                ratio.with_goal(Goal::AtLeast(0.9))
            } else {
                ratio
            });
        }
        if clients == GOAL_AT && each == Each::Keep {
            let rate = Figure::new(
                format!("{what}, {clients} clients: rate, three times kube2iam's"),
                "1/s",
                &taken[0].rate,
            );
            section.figures.push(rate.with_goal(Goal::AtLeast(GOAL_RATE)));
        }
    }
    for curve in &mut curves {
        curve.points.sort_by(|one, other| one.0.total_cmp(&other.0));
    }
    section.plots.push(Plot {
        name,
        title: match each {
            Each::Keep => "Cached credentials, connections kept open",
            _ => "Cached credentials, a connection for each request",
        },
        x: "clients at a time",
        y: "requests a second",
        curves,
    });
    Ok(())
}
