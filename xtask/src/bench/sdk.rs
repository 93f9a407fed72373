//! Measures the time from the start of a process to its credentials with a real SDK, through the agent and through
//! the node's own metadata service.

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, ensure};
use metaproxy_lab::pod::PodSpec;

use super::figures::{Figure, Samples, Section};
use super::site::{Site, stop};
use crate::setup;

/// Gets credentials as boto3 does for every client (`botocore.credentials.InstanceMetadataProvider`).
const PROGRAM: &str = "
import botocore.session
print(botocore.session.get_session().get_credentials().get_frozen_credentials().access_key)
";

/// The node's access key in the metadata service of the benchmark site.
const NODE_KEY: &str = "node";

/// Measures processes that start one after another.
///
/// # Errors
/// If the agent does not start, or a process gets no credentials.
pub fn sdk(site: &Site) -> Result<Section> {
    let mut section = Section {
        title: "Start of a process to its credentials",
        how: "The time of a process from its start to its end: it starts Python, imports botocore and gets credentials. In a pod \
              it gets those of the pod's role from the agent, on the node those of the node from its metadata service",
        ..Section::default()
    };
    let python = setup::venv().join("bin/python");
    if !python.exists() {
        println!("the start of a process is not measured: run `sudo cargo xtask setup` for its SDK");
        return Ok(section);
    }
    let agent = site.agent(&[])?;
    let pod = site.pod(PodSpec::with_role("started", "app"))?;
    let (mut served, mut plain) = (Samples::default(), Samples::default());
    // The first process reads Python and the SDK from the disk, so it is not measured.
    took(&mut pod.command(&python)?, false)?;
    for _ in 0..site.effort.rounds * 3 {
        served.push(took(&mut pod.command(&python)?, false)?);
        plain.push(took(&mut site.program_in(&python, site.lab.node())?, true)?);
    }
    stop(agent)?;
    section.figures = vec![
        Figure::new("process start to credentials, in a pod", "ms", &served),
        Figure::new("the same on the node, without metaproxy", "ms", &plain),
        Figure::new(
            "process start to credentials: in a pod / on the node",
            "ratio",
            &served.over(&plain),
        ),
    ];
    Ok(section)
}

/// Returns how long a process takes in milliseconds, and checks whether it gets the node's credentials.
fn took(command: &mut Command, on_node: bool) -> Result<f64> {
    command
        .args(["-c", PROGRAM])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("PATH", "/usr/bin:/bin");
    let begun = Instant::now();
    let output = command.output()?;
    let millis = begun.elapsed().as_secs_f64() * 1000.0;
    let key = String::from_utf8_lossy(&output.stdout);
    let is_right = !key.is_empty() && (key.trim() == NODE_KEY) == on_node;
    ensure!(
        output.status.success() && is_right,
        "the process got the access key {key:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(millis)
}
