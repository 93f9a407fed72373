//! `cargo xtask fuzz` runs libFuzzer on the parsers of untrusted input, with a stable compiler. Only the workspace's
//! crates are built with coverage counters, so that all other crates are reused from other builds.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::shell::{cargo, root, run, step};

/// The names of the targets (`metaproxy_fuzz::TARGETS`).
const TARGETS: [&str; 6] = ["path", "head", "cgroup", "roles", "manifests", "packet"];

/// The compiler's flags that libFuzzer needs (SanitizerCoverage).
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// The environment variable that is set when cargo calls this program instead of rustc.
const WRAPPER: &str = "METAPROXY_FUZZ_WRAPPER";

/// The arguments of `cargo xtask fuzz`.
#[derive(Clone, Debug, Args)]
pub struct Fuzz {
    /// The target: path, head, cgroup, roles, manifests or packet [default: all]
    target: Option<String>,
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// Runs the targets, starting from the committed inputs. New inputs and failures are written to target/fuzz.
pub fn fuzz(options: &Fuzz) -> Result<()> {
    let targets = match &options.target {
        Some(name) if !TARGETS.contains(&name.as_str()) => {
            bail!("{name:?} is not a target; targets: {}", TARGETS.join(", "))
        }
        Some(name) => vec![name.as_str()],
        None => TARGETS.to_vec(),
    };
    step("building the fuzzer");
    let own = std::env::current_exe().context("the path of this program")?;
    run(cargo()
        .args([
            "build",
            "--quiet",
            "--workspace",
            "--bin",
            "fuzz",
            "--features",
            "metaproxy-fuzz/libfuzzer",
        ])
        .env("RUSTC_WORKSPACE_WRAPPER", own)
        .env(WRAPPER, "1"))?;
    for target in targets {
        step(&format!("fuzzing {target} for {} s", options.seconds));
        let dir: PathBuf = root().join("target/fuzz").join(target);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        run(Command::new(root().join("target/debug/fuzz"))
            .env("METAPROXY_FUZZ_TARGET", target)
            .arg(format!("-max_total_time={}", options.seconds))
            .arg(format!("-artifact_prefix={}/found-", dir.display()))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
            .arg(&dir)
            .arg(root().join("metaproxy/fuzz/corpus").join(target)))
        .with_context(|| {
            format!(
                "fuzzing {target} failed: fix the bug, then move found-* of {} to metaproxy/fuzz/corpus/{target}",
                dir.display()
            )
        })?;
    }
    Ok(())
}

/// Runs rustc if cargo has called this program as the rustc wrapper, with coverage for the workspace's crates.
/// Returns `None` otherwise.
pub fn as_wrapper() -> Option<ExitCode> {
    std::env::var_os(WRAPPER)?;
    let mut words = std::env::args_os().skip(1);
    let mut command = Command::new(words.next()?);
    let words: Vec<_> = words.collect();
    let is_ours = words
        .windows(2)
        .any(|pair| pair[0] == "--crate-name" && pair[1].to_string_lossy().starts_with("metaproxy"));
    let is_fuzzer = words
        .windows(2)
        .any(|pair| pair[0] == "--crate-name" && pair[1] == "fuzz");
    command.args(&words);
    if is_ours || is_fuzzer {
        command.args(COVERAGE).arg("--cfg=fuzzing");
    }
    let status = command.env_remove(WRAPPER).status().ok()?;
    Some(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
