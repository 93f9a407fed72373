//! Measures what the guard costs traffic that has nothing to do with the metadata service.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use metaproxy_lab::AWS_IP;
use metaproxy_lab::netns::Netns;
use metaproxy_lab::pod::PodSpec;

use super::connects::programs;
use super::figures::{Figure, Goal, Samples, Section};
use super::site::{Process, Site, stop, within};
use super::traffic::{Kind, Measured};
use crate::shell::go_on;

const SINK: u16 = 7004;

/// The largest acceptable ratio of the costs with and without the guard: a difference below 1% is not noticeable.
const UNCHANGED: f64 = 1.01;

pub fn guarded(site: &Site) -> Result<Section> {
    let pod = site.pod(PodSpec::without_role("sending"))?;
    let agent = site.agent(&["--guard=off"])?;
    let to = SocketAddr::new(IpAddr::V4(AWS_IP), SINK).to_string();
    let mut sink = site.in_netns(site.lab.aws(), &["bench-sink", "--listen", &to])?;
    let _sink = Process::spawn(&mut sink)?;
    within(Duration::from_secs(5), "a server of other traffic", || {
        Ok(site.lab.aws().run(|| TcpStream::connect(&to))?.is_ok())
    })?;
    let millis = site.effort.millis.to_string();
    let send = |kind: Kind| -> Result<Measured> {
        let words = [
            "bench-send",
            "--to",
            &to,
            "--kind",
            kind.name(),
            "--millis",
            &millis,
        ];
        let output = site.in_pod(&pod, &words)?.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "the sender failed: {}", output.status);
        serde_json::from_slice(&output.stdout).context("cannot parse the output of the sender")
    };
    // Packets that are lost on the way were not forwarded, so packets are counted at the receiver.
    let measure = |kind: Kind| -> Result<f64> {
        go_on()?;
        let before = arrived(site.lab.aws())?;
        let measured = send(kind)?;
        let packets = arrived(site.lab.aws())? - before;
        Ok(match kind {
            Kind::Small => packets as f64 / measured.seconds / 1e3,
            Kind::Bulk | Kind::PingPong => measured.value,
        })
    };
    let mut section = Section {
        title: "Other traffic beside the guard",
        how: "A pod sends traffic to a server outside the node, and the node forwards it through its uplink (veth). \
              The guard (packets: tcx at the uplink) is started and stopped in each round. UDP packets are counted \
              at the receiver",
        ..Section::default()
    };
    for kind in Kind::ALL {
        let (mut with, mut without) = (Samples::default(), Samples::default());
        for round in 0..site.effort.rounds * 2 {
            for guarded in [round % 2 == 0, round % 2 != 0] {
                if guarded {
                    let guard = site.guard()?;
                    with.push(measure(kind)?);
                    stop(guard)?;
                } else {
                    without.push(measure(kind)?);
                }
            }
        }
        let what = kind.what();
        // A higher ratio means a higher cost, so the ratio of a rate is inverted.
        let ratio = if kind.is_rate() {
            without.over(&with)
        } else {
            with.over(&without)
        };
        section.figures.extend([
            Figure::new(format!("{what}, without"), kind.unit(), &without),
            Figure::new(format!("{what}, with the guard"), kind.unit(), &with),
            Figure::new(format!("{what}, cost with / without"), "ratio", &ratio)
                .with_goal(Goal::AtMost(UNCHANGED)),
        ]);
    }
    // Checks that the guard saw these packets, and measures its time for each.
    let guard = site.guard()?;
    let runs = programs("a packet", &mut || {
        let before = arrived(site.lab.aws())?;
        send(Kind::Small)?;
        Ok((arrived(site.lab.aws())? - before) as f64)
    })?;
    stop(guard)?;
    stop(agent)?;
    ensure!(
        runs.iter().any(|figure| figure.what.contains("uplink")),
        "the guard has seen none of these packets"
    );
    section.figures.extend(runs);
    Ok(section)
}

/// Counts the packets that the devices of a network namespace have received, except its loopback device.
fn arrived(netns: &Netns) -> Result<u64> {
    let devices = netns.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let received = |line: &str| -> Option<u64> {
        let (name, counts) = line.split_once(':')?;
        let packets = counts.split_whitespace().nth(1)?.parse().ok()?;
        (name.trim() != "lo").then_some(packets)
    };
    Ok(devices.lines().filter_map(received).sum())
}
