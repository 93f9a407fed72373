//! What the agent takes of a node, and how that grows with pods and connections.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::apiserver::FakeApiServer;
use xtask::lab::pod::{Pod, PodSpec};

use super::figures::{Curve, Figure, Goal, Plot, Samples, Section};
use super::site::{CREDENTIALS, IMDS, Site, processor_time, start, status, within};

const NODE: &str = "node1";

/// Pods with a session each; the kubelet's limit is 110 unless it is raised, and 250 is what EKS allows on large nodes.
const PODS: [usize; 5] = [1, 10, 100, 250, 1000];

/// The number of pods for which there are goals.
const GOAL_AT: usize = 250;

/// Connections that are open and silent.
const IDLE: [usize; 4] = [1, 100, 500, 2000];

const MIB: f64 = 1024.0;

struct Footprint {
    pods: usize,
    ready_ms: Samples,
    rest: f64,
    loaded: f64,
    own: f64,
    threads: f64,
    descriptors: f64,
    rate: Samples,
    processor: Samples,
}

pub fn footprint(site: &Site) -> Result<Section> {
    let asking = site.pod(PodSpec {
        known: false,
        ..PodSpec::without_role("asking")
    })?;
    let api = FakeApiServer::start(site.lab.aws())?;
    api.put("namespaces", json!({ "metadata": { "name": "apps" } }));
    api.put(
        "serviceaccounts",
        json!({ "metadata": { "name": "web", "namespace": "apps" } }),
    );
    let spec = AgentSpec {
        cluster: Some((api.kubeconfig(site.lab.dir())?, NODE)),
        ..site.spec(&[])
    };
    let mut section = Section {
        title: "Memory, threads, descriptors, start",
        how: "pods of an API server in miniature (HTTP without TLS), each with a session of its own; resident memory after \
              sessions were fetched, and after 32 clients have asked for one of them; ready when pods are served",
        ..Section::default()
    };
    let (mut known, mut found) = (0, Vec::new());
    for &pods in site.effort.some(&PODS) {
        for number in known..pods {
            api.put("pods", pod_object(number, (number == 0).then_some(&asking)));
        }
        known = pods;
        found.push(of_pods(site, &spec, &asking, pods)?);
    }
    for one in &found {
        let of = |what: &str| format!("{} pods: {what}", one.pods);
        let at_goal = |figure: Figure, most: f64| {
            if one.pods == GOAL_AT {
                figure.with_goal(Goal::AtMost(most))
            } else {
                figure
            }
        };
        section.figures.extend([
            at_goal(Figure::new(of("start to ready"), "ms", &one.ready_ms), 300.0),
            at_goal(Figure::once(of("memory at rest"), "MiB", one.rest), 25.0),
            at_goal(Figure::once(of("memory after load"), "MiB", one.loaded), 25.0),
            Figure::once(
                of("of that, other than pages of the program's file"),
                "MiB",
                one.own,
            ),
            Figure::once(of("threads"), "", one.threads),
            Figure::once(of("descriptors"), "", one.descriptors),
            Figure::new(of("rate, 32 clients"), "1/s", &one.rate),
            Figure::new(of("processor a request"), "µs", &one.processor),
        ]);
    }
    let curve = |name: &str, value: &dyn Fn(&Footprint) -> f64| Curve {
        name: name.to_owned(),
        points: found.iter().map(|one| (one.pods as f64, value(one))).collect(),
    };
    section.plots.push(Plot {
        name: "memory-by-pods",
        title: "Resident memory",
        x: "pods with a session",
        y: "MiB",
        curves: vec![
            curve("at rest", &|one| one.rest),
            curve("after load", &|one| one.loaded),
        ],
    });
    section.plots.push(Plot {
        name: "rate-by-pods",
        title: "Cached credentials, 32 clients",
        x: "pods with a session",
        y: "requests a second",
        curves: vec![curve("metaproxy", &|one| one.rate.median())],
    });
    idle_connections(site, &spec, &asking, &mut section)?;
    Ok(section)
}

fn pod_object(number: usize, of: Option<&Pod>) -> serde_json::Value {
    let uid = of.map_or_else(
        || format!("{number:08x}-aaaa-4b7a-9c55-3a2f7f0e8d11"),
        |pod| pod.uid().to_owned(),
    );
    json!({
        "metadata": {
            "name": format!("web-{number}"), "namespace": "apps", "uid": uid,
            "annotations": { "iam.amazonaws.com/role": "app" },
        },
        "spec": { "nodeName": NODE, "serviceAccountName": "web", "containers": [{ "name": "main" }] },
        "status": { "phase": "Running" },
    })
}

fn of_pods(site: &Site, spec: &AgentSpec, asking: &Pod, pods: usize) -> Result<Footprint> {
    let mut ready_ms = Samples::default();
    for _ in 1..site.effort.rounds {
        let (mut agent, took) = timed_start(site, spec)?;
        ready_ms.push(took);
        agent.stop()?;
    }
    let calls = site.sts.calls().len();
    let (mut agent, took) = timed_start(site, spec)?;
    ready_ms.push(took);
    within(Duration::from_secs(30), "a session for each pod", || {
        Ok(site.sts.calls().len() >= calls + pods)
    })?;
    std::thread::sleep(Duration::from_millis(500));
    let resident = || status(agent.pid(), "VmRSS").map(|kib| kib as f64 / MIB);
    let rest = resident()?;
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
        processor.push(spent.as_secs_f64() * 1e6 * 0.9 / outcome.done as f64);
    }
    std::thread::sleep(Duration::from_millis(500));
    let footprint = Footprint {
        pods,
        ready_ms,
        rest,
        loaded: resident()?,
        own: status(agent.pid(), "RssAnon")? as f64 / MIB,
        threads: status(agent.pid(), "Threads")? as f64,
        descriptors: std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count() as f64,
        rate,
        processor,
    };
    agent.stop()?;
    Ok(footprint)
}

fn timed_start(site: &Site, spec: &AgentSpec) -> Result<(Agent, f64)> {
    let start = Instant::now();
    let agent = Agent::start(&site.lab, spec)?;
    Ok((agent, start.elapsed().as_secs_f64() * 1000.0))
}

/// What connections cost that do nothing.
fn idle_connections(site: &Site, spec: &AgentSpec, asking: &Pod, section: &mut Section) -> Result<()> {
    let mut memory = Vec::new();
    for &clients in site.effort.some(&IDLE) {
        let mut agent = Agent::start(&site.lab, spec)?;
        let before = status(agent.pid(), "VmRSS")?;
        let clients_text = clients.to_string();
        let words = [
            "bench-hold",
            "--to",
            IMDS,
            "--path",
            CREDENTIALS,
            "--clients",
            &clients_text,
        ];
        let mut holding = start(&mut site.in_pod(asking, &words)?)?;
        let open = || Ok(std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count() >= clients);
        within(Duration::from_secs(20), "connections that are open", open)?;
        std::thread::sleep(Duration::from_millis(300));
        let after = status(agent.pid(), "VmRSS")?;
        ensure!(holding.try_wait()?.is_none(), "connections were not held");
        holding.kill()?;
        holding.wait()?;
        agent.stop()?;
        memory.push((clients as f64, after.saturating_sub(before) as f64 / MIB));
    }
    for (clients, mib) in &memory {
        section.figures.push(Figure::once(
            format!("{clients} silent connections: memory"),
            "MiB",
            *mib,
        ));
    }
    section.plots.push(Plot {
        name: "memory-by-connections",
        title: "Memory of connections that say nothing after a request",
        x: "connections",
        y: "MiB",
        curves: vec![Curve {
            name: "metaproxy".to_owned(),
            points: memory,
        }],
    });
    Ok(())
}
