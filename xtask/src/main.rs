//! `cargo xtask`: metaproxy's development commands.

mod bench;
mod checks;
mod demo;
mod ebpf;
mod fuzz;
mod image;
mod manifests;
mod setup;
mod shell;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// metaproxy's development commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what a fresh Debian or Ubuntu machine lacks (root): packages, bpf-linker, clients for the tests
    Setup,
    /// Build the eBPF object for x86_64 and aarch64 into target/bpf
    BuildEbpf,
    /// Show that each pod gets its own role; needs no AWS account and no cluster (root)
    Demo,
    /// Build the container image, as an OCI archive in target/image
    Image(image::Image),
    /// Generate the kustomize base and the golden files of the chart's tests from the chart
    Manifests {
        /// Only compare the existing files with the chart's output
        #[arg(long)]
        check: bool,
    },
    /// Run every test (root)
    Test {
        /// Run only this module of the lab, or integration tests whose name contains this; with --cluster, only
        /// scenarios whose name contains this
        filter: Option<String>,
        /// Install the chart in the cluster of $KUBECONFIG and test it there. This machine must be the cluster's only
        /// node, and the cluster must be disposable
        #[arg(long)]
        cluster: bool,
        /// Another build of metaproxy, to test that agents and guards of both builds can run on one node
        #[arg(long, conflicts_with = "cluster")]
        previous: Option<std::path::PathBuf>,
        /// With --cluster: use this image, which the node already has, instead of building one
        #[arg(long, requires = "cluster")]
        image: Option<String>,
    },
    /// Run the fuzz targets of metaproxy/fuzz
    Fuzz(fuzz::Fuzz),
    /// Boot Debian's kernels in QEMU and test interception, identity, guard and cleanup there (root)
    VmTest(vm::VmTest),
    /// Measure the cost of metaproxy and compare it with other servers; writes a report below target/bench (root)
    Bench(bench::Bench),
    #[command(flatten)]
    Inside(bench::Inside),
    /// Run rustfmt, clippy and cargo-deny
    Lint,
}

fn main() -> ExitCode {
    if let Some(code) = fuzz::as_wrapper() {
        return code;
    }
    if vm::is_guest() {
        vm::run_guest();
    }
    let result = match Cli::parse().command {
        Command::Setup => setup::run_all(),
        Command::BuildEbpf => ebpf::build(),
        Command::Demo => demo::run(),
        Command::Image(image) => image::make(&image),
        Command::Manifests { check } => manifests::make(check),
        Command::Test {
            filter,
            cluster: true,
            image,
            ..
        } => checks::cluster(filter.as_deref(), image),
        Command::Test { filter, previous, .. } => checks::test(filter.as_deref(), previous.as_deref()),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::VmTest(options) => vm::test(&options),
        Command::Bench(options) => bench::bench(&options),
        Command::Inside(inside) => bench::inside(&inside),
        Command::Lint => checks::lint(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
