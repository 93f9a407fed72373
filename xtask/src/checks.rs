//! `cargo xtask test` and `cargo xtask lint`.

use std::process::Command;

use anyhow::Result;
use xtask::lab::require_root;

use crate::shell::{cargo, run, step};
use crate::{ebpf, setup};

/// Every test. The lab's tests take turns by themselves.
pub fn test(filter: Option<&str>) -> Result<()> {
    require_root()?;
    setup::for_demo()?;
    setup::test_clients()?;
    ebpf::build()?;
    step("building");
    // The lab's tests call both binaries.
    run(cargo().args(["build", "--workspace", "--bins"]))?;
    if filter.is_none() {
        step("unit and property tests");
        run(cargo().args(["test", "--quiet", "--workspace", "--lib", "--bins"]))?;
    }
    step("integration tests: real programs, cgroups, namespaces and clients");
    run(with_clients(
        cargo()
            .args([
                "test",
                "--package",
                "metaproxy",
                "--package",
                "xtask",
                "--test",
                "*",
                "--",
            ])
            .args(filter),
    ))?;
    if filter.is_none() {
        step("the demo");
        crate::demo::run()?;
        step("the build that logs from within the kernel");
        run(with_clients(cargo().args([
            "test",
            "--package",
            "metaproxy",
            "--features",
            "ebpf-log",
            "--test",
            "ebpf_log",
        ])))?;
    }
    Ok(())
}

fn with_clients(command: &mut Command) -> &mut Command {
    command
        .env("METAPROXY_TEST_VENV", setup::venv())
        .env("METAPROXY_TEST_JAVASCRIPT", setup::javascript())
}

/// rustfmt, clippy, cargo-deny.
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
    step("cargo-deny");
    // Advisories come from a repository on the network, and are looked at where there is one.
    run(Command::new(setup::deny()?)
        .current_dir(crate::shell::root())
        .args(["--log-level", "error", "check", "bans", "licenses", "sources"]))
}
