//! `cargo xtask demo` shows the main job without an AWS account or a cluster: two pods with roles and one without, a
//! fake metadata service and STS, and the real agent with its real programs.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::{FakeImds, NODE_ROLE};
use metaproxy_lab::leftovers::snapshot;
use metaproxy_lab::pod::{Pod, PodSpec, command_in};
use metaproxy_lab::sts::FakeSts;
use metaproxy_lab::{Lab, bpf, require_root};
use nix::sys::signal::Signal;

use crate::shell::{cargo, catch_interrupts, go_on, root, run as run_command, step};
use crate::{ebpf, setup};

/// The port of kube2iam's and kiam's agents, which other software on a node uses too.
const CONTESTED_PORT: u16 = 8181;

/// The program that sends requests from within pods.
const CLIENT: &str = "metaproxy-lab";

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// Prints one line of the report. Fails if `right` is false.
fn show(who: &str, asked: &str, got: impl Display, right: bool) -> Result<()> {
    go_on()?;
    println!(
        "  {} {who:<22} {asked:<34} {got}",
        if right { "ok " } else { "BAD" }
    );
    ensure!(right, "{who}: {asked}: unexpected result: {got}");
    Ok(())
}

/// Builds the binaries and runs the demo.
pub fn run() -> Result<()> {
    require_root()?;
    setup::for_demo()?;
    ebpf::build()?;
    step("building the agent");
    // Builds the whole workspace, as the tests do: a build of one package selects other features of its dependencies,
    // so that cargo would compile them again.
    run_command(cargo().args(["build", "--quiet", "--workspace", "--bins"]))?;
    catch_interrupts()?;
    step("a node, its pods and its metadata service (cgroups and network namespaces of this machine)");
    let lab = Lab::alone()?;
    demonstrate(&lab).inspect_err(|_| println!())
}

/// Returns the path of a binary of this workspace.
fn binary(name: &str) -> PathBuf {
    root().join("target/debug").join(name)
}

fn demonstrate(lab: &Lab) -> Result<()> {
    let keys = (
        "ASIANODE".to_owned(),
        "secret-of-node".to_owned(),
        "token-of-node".to_owned(),
    );
    let imds = FakeImds::start(lab.aws(), keys)?;
    let sts = FakeSts::start(lab.aws(), Duration::from_millis(50))?;
    let reader = lab.pod(PodSpec::with_role("reader", "reader"))?;
    let writer = lab.pod(PodSpec::with_role(
        "writer",
        "arn:aws:iam::123456789012:role/team/writer",
    ))?;
    let plain = lab.pod(PodSpec::without_role("plain"))?;
    let before = snapshot(lab.node())?;

    step("without metaproxy, every pod gets the role of the node");
    for (name, pod) in [("reader", &reader), ("writer", &writer), ("plain", &plain)] {
        let got = ask(pod, LIST)?;
        show(
            &format!("pod {name}"),
            "GET …/security-credentials/",
            format!("→ {got}"),
            got == NODE_ROLE,
        )?;
    }

    step("metaproxy starts");
    let spec = AgentSpec::new(&binary("metaproxy"), &FakeSts::url());
    let mut agent = Agent::start(lab, &spec)?;
    let listeners = agent.listeners()?;
    let shown = listeners
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" and ");
    let fine = listeners.iter().all(|listener| listener.port() != CONTESTED_PORT);
    show("agent", "listens on a port of its choice:", shown, fine)?;
    let seen_before = imds.seen_from_pods().len();
    for (name, pod, role) in [("reader", &reader, "reader"), ("writer", &writer, "writer")] {
        let who = format!("pod {name}");
        let got = ask(pod, LIST)?;
        show(
            &who,
            "GET …/security-credentials/",
            format!("→ {got}"),
            got == role,
        )?;
        let (key, expires) = credentials(&ask(pod, &format!("{LIST}{role}"))?)?;
        let right = key.starts_with("ASIA") && key.ends_with(role);
        show(
            &who,
            &format!("GET …/security-credentials/{role}"),
            format!("→ key {key}, until {expires}"),
            right,
        )?;
        let got = ask(pod, &format!("{LIST}{NODE_ROLE}"))?;
        show(
            &who,
            &format!("GET …/security-credentials/{NODE_ROLE}"),
            format!("→ {got}"),
            got == "status 404",
        )?;
    }
    let got = ask(&plain, LIST)?;
    show(
        "pod plain (no role)",
        "GET …/security-credentials/",
        format!("→ {got}"),
        got == "status 404",
    )?;
    for (path, want) in [
        ("/latest/meta-data/placement/region", "us-east-1"),
        ("/latest/user-data", "status 404"),
    ] {
        let got = ask(&plain, path)?;
        show(
            "pod plain (no role)",
            &format!("GET {path}"),
            format!("→ {got}"),
            got == want,
        )?;
    }
    let got = ask_from_host(lab, LIST)?;
    show(
        "process of the node",
        "GET …/security-credentials/",
        format!("→ {got}"),
        got == NODE_ROLE,
    )?;
    let reached = imds.seen_from_pods().len() - seen_before;
    show(
        "node's IMDS",
        "requests of pods that reached it:",
        reached,
        reached == 0,
    )?;
    for call in sts.calls() {
        show(
            "STS",
            &format!("AssumeRole for {}", call.session),
            format!("→ {}", call.role),
            true,
        )?;
    }
    let bound = is_bound(lab, CONTESTED_PORT)?;
    show("port 8181", "in use:", if bound { "yes" } else { "no" }, !bound)?;
    let during = snapshot(lab.node())?;
    show(
        "node's network",
        "rules, routes, interfaces:",
        "as before",
        during == before,
    )?;
    let loaded = bpf::held_in(lab)?.len();
    show("kernel", "programs, links and maps of ours:", loaded, loaded > 5)?;

    step("metaproxy is killed with SIGKILL");
    agent.signal(Signal::SIGKILL)?;
    agent.wait()?;
    let left = bpf::left_over(lab, &[])?;
    show(
        "kernel",
        "programs, links and maps of ours:",
        left.len(),
        left.is_empty(),
    )?;
    let after = snapshot(lab.node())?;
    show(
        "node's network",
        "rules, routes, interfaces:",
        "as before",
        after == before,
    )?;
    let got = ask_from_host(lab, LIST)?;
    show(
        "process of the node",
        "GET …/security-credentials/",
        format!("→ {got}"),
        got == NODE_ROLE,
    )?;
    println!("\nAll results were as expected.");
    Ok(())
}

fn ask(pod: &Pod, path: &str) -> Result<String> {
    answer(&mut pod.command(binary(CLIENT))?, path)
}

fn ask_from_host(lab: &Lab, path: &str) -> Result<String> {
    answer(
        &mut command_in(&binary(CLIENT), Some(&lab.host_cgroup()), lab.node().file())?,
        path,
    )
}

/// Returns the outcome of one request.
fn answer(command: &mut Command, path: &str) -> Result<String> {
    let output = command
        .args(["dial", "--path", path])
        .stdin(Stdio::null())
        .output()
        .context("cannot run a client")?;
    let outcomes: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cannot parse the client's outcome")?;
    let outcome = outcomes
        .as_object()
        .and_then(|outcomes| outcomes.keys().next().cloned());
    outcome.context("the client reported no outcome")
}

fn credentials(document: &str) -> Result<(String, String)> {
    let document: serde_json::Value =
        serde_json::from_str(document).with_context(|| format!("not a credentials document: {document}"))?;
    let field = |name: &str| {
        document[name]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("no {name}"))
    };
    Ok((field("AccessKeyId")?, field("Expiration")?))
}

/// Reports whether a port of the node is in use.
fn is_bound(lab: &Lab, port: u16) -> Result<bool> {
    let address = SocketAddr::from(([0, 0, 0, 0], port));
    match lab.node().run(|| std::net::TcpListener::bind(address))? {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Ok(true),
        Err(error) => bail!("cannot try port {port}: {error}"),
    }
}
