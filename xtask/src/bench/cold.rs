//! Measures first requests: of pods whose session was fetched ahead, of pods that send a request while the agent
//! learns of them, and of many clients at the same time.

use std::time::Duration;

use anyhow::Result;
use metaproxy_lab::agent::Agent;

use super::cluster::{Cluster, running};
use super::figures::{Figure, Goal, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Site, collect, ordinary, start, stop, within};

/// The latency of the fake STS.
const STS_LATENCY: Duration = Duration::from_millis(50);

/// How long to wait after a change at the API server. The agent uses the change earlier.
const PROPAGATION_TIME: Duration = Duration::from_millis(200);

/// The number of clients that send a first request at the same time, except in a smoke run.
const BURST: usize = 1000;

/// The largest acceptable time of a first request, in milliseconds: the AWS SDKs give up after a second.
const LIMIT_MS: f64 = 1000.0;

pub fn cold(site: &Site) -> Result<Section> {
    let cluster = Cluster::new(site)?;
    let agent = Agent::start(&site.lab, &cluster.spec)?;
    site.sts.behave(ordinary(STS_LATENCY));
    let (first, hasty, crowd) = (
        running(site, "first")?,
        running(site, "hasty")?,
        running(site, "crowd")?,
    );
    let one = ["bench-load", "--to", IMDS, "--path", CREDENTIALS, "--count", "1"];
    // The agent drops the session with the pod.
    let forget = |name: &str| {
        cluster.delete(name);
        std::thread::sleep(PROPAGATION_TIME);
    };

    let (mut prefetched, mut hurried, mut failed) = (Samples::default(), Samples::default(), 0);
    for _ in 0..site.effort.rounds * 2 {
        forget("first");
        let calls = site.sts.calls().len();
        cluster.put("first", first.uid());
        within(Duration::from_secs(5), "a session that is fetched ahead", || {
            Ok(site.sts.calls().len() > calls)
        })?;
        std::thread::sleep(STS_LATENCY + PROPAGATION_TIME);
        let outcome = collect(start(&mut site.in_pod(&first, &one)?)?)?;
        failed += outcome.failed;
        if outcome.done > 0 {
            prefetched.push(outcome.max / 1000.0);
        }

        forget("hasty");
        let mut command = site.in_pod(&hasty, &one)?;
        cluster.put("hasty", hasty.uid());
        let outcome = collect(start(&mut command)?)?;
        failed += outcome.failed;
        if outcome.done > 0 {
            hurried.push(outcome.max / 1000.0);
        }
    }

    let calls = site.sts.calls().len();
    let at_once = if site.effort.smoke { 50 } else { BURST };
    let clients = at_once.to_string();
    let words = [&one[..], &["--clients", &clients]].concat();
    let command = start(&mut site.in_pod(&crowd, &words)?)?;
    // All clients are connected and held before the agent knows of the pod.
    std::thread::sleep(Duration::from_millis(250));
    cluster.put("crowd", crowd.uid());
    let outcome = collect(command)?;
    let calls = site.sts.calls().len() - calls;
    stop(agent)?;

    let at_once = |what: &str| format!("{at_once} first requests at once: {what}");
    Ok(Section {
        title: "First requests",
        how: "Times are measured from connect() to the last byte. STS takes 50 ms, and pods come from a fake API \
              server. The first request of a pod that is just becoming known is sent while the agent learns of the \
              pod. Simultaneous first requests are held until their pod is known, a quarter of a second after the \
              first of them began to connect",
        figures: vec![
            Figure::new("first request, session fetched ahead", "ms", &prefetched),
            Figure::new(
                "first request of a pod that is just becoming known",
                "ms",
                &hurried,
            )
            .with_goal(Goal::AtMost(LIMIT_MS)),
            Figure::once("of both, failed", "", failed as f64).with_goal(Goal::AtMost(0.0)),
            Figure::once(at_once("STS calls"), "", calls as f64).with_goal(Goal::AtMost(1.0)),
            Figure::once(at_once("failed"), "", outcome.failed as f64).with_goal(Goal::AtMost(0.0)),
            Figure::once(at_once("the last one"), "ms", outcome.max / 1000.0)
                .with_goal(Goal::AtMost(LIMIT_MS)),
        ],
        plots: Vec::new(),
    })
}
