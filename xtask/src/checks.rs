//! Implements `cargo xtask test` and `cargo xtask lint`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use metaproxy_lab::require_root;

use crate::shell::{cargo, run, step};
use crate::{ebpf, image, setup};

/// Runs every test, or only the tests of one module of the lab, or only the tests whose name contains the filter.
pub fn test(filter: Option<&str>, previous: Option<&Path>) -> Result<()> {
    require_root()?;
    setup::run_all()?;
    ebpf::build()?;
    step("building");
    // The tests run these binaries.
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    if filter.is_none() {
        step("unit and property tests");
        run(cargo().args(["test", "--quiet", "--workspace", "--lib", "--bins"]))?;
    }
    step("integration tests: real programs, cgroups, namespaces and clients");
    run(with_clients(
        cargo()
            .args(["test", "--workspace", "--no-fail-fast", "--test", "*", "--"])
            .args(filter.map(of_module))
            .envs(previous.map(|path| ("METAPROXY_TEST_PREVIOUS", path))),
    ))?;
    if filter.is_none() {
        step("the demo");
        crate::demo::run()?;
        step("the build that logs from within the kernel");
        run(with_clients(cargo().args([
            "test",
            "--workspace",
            "--features",
            "metaproxy/ebpf-log",
            "--test",
            "ebpf_log",
        ])))?;
    }
    Ok(())
}

/// Converts the name of one of the lab's modules into a filter that no test of another module matches.
fn of_module(filter: &str) -> String {
    let module = crate::shell::root().join(format!("metaproxy/tests/lab/{filter}.rs"));
    if module.exists() {
        format!("{filter}::")
    } else {
        filter.to_owned()
    }
}

/// Runs the tests of the chart on a real cluster.
pub fn cluster(filter: Option<&str>, image: Option<String>) -> Result<()> {
    require_root()?;
    if std::env::var_os("KUBECONFIG").is_none() {
        bail!("--cluster: KUBECONFIG names no cluster");
    }
    setup::for_demo()?;
    setup::kubernetes_tools()?;
    ebpf::build()?;
    let mut command = cargo();
    command.args([
        "test",
        "--workspace",
        "--test",
        "cluster",
        "--",
        "--nocapture",
        "--ignored",
    ]);
    match image {
        Some(image) => {
            command.env("METAPROXY_TEST_IMAGE", image);
        }
        None => {
            let name = format!("localhost/metaproxy:{}", env!("CARGO_PKG_VERSION"));
            // The quick image contains the same code in the same form as a release. A fully optimised build takes
            // longer than all the tests.
            let archive = image::quick_archive_of_this_machine(&name)?;
            command
                .env("METAPROXY_TEST_IMAGE", name)
                .env("METAPROXY_TEST_ARCHIVE", archive);
        }
    }
    if let Some(filter) = filter {
        command.env("METAPROXY_TEST_SCENARIO", filter);
    }
    step("building");
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    step("the chart on a cluster");
    run(command.env("METAPROXY_TEST_CLUSTER", "1"))
}

fn with_clients(command: &mut Command) -> &mut Command {
    command
        .env("METAPROXY_TEST_VENV", setup::venv())
        .env("METAPROXY_TEST_JAVASCRIPT", setup::javascript())
}

/// Runs rustfmt, clippy, rustdoc and cargo-deny.
pub fn lint() -> Result<()> {
    step("rustfmt");
    run(cargo().args(["fmt", "--all", "--check"]))?;
    step("clippy");
    run(cargo().args([
        "clippy",
        "--quiet",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    run(cargo().args([
        "clippy",
        "--quiet",
        "--package",
        "metaproxy",
        "--features",
        "ebpf-log",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    step("rustdoc");
    run(cargo()
        .env("RUSTDOCFLAGS", "-D warnings")
        .args(["doc", "--quiet", "--workspace", "--no-deps"]))?;
    step("cargo-deny");
    // Advisories are not checked here, because they come from a repository on the network. They are checked
    // separately, on a machine with network access.
    run(Command::new(setup::deny()?)
        .current_dir(crate::shell::root())
        .args(["--log-level", "error", "check", "bans", "licenses", "sources"]))
}
