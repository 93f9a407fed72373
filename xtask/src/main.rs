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
    /// Show the main job: pods with roles of their own, no AWS account and no cluster needed (root)
    Demo,
    /// Build the container image, as an OCI archive in target/image
    Image(image::Image),
    /// Write the kustomize base, and what the chart's tests expect, from the chart
    Manifests {
        /// Only compare with what is there
        #[arg(long)]
        check: bool,
    },
    /// Run every test (root)
    Test {
        /// Only this module of the lab, or integration tests whose name contains this; with --cluster, only scenarios
        filter: Option<String>,
        /// Install the chart in the cluster of $KUBECONFIG, on whose one node this runs, and try it there. The cluster
        /// should be one to throw away
        #[arg(long)]
        cluster: bool,
        /// Another build of metaproxy, which agents and guards of this one must stand beside
        #[arg(long, conflicts_with = "cluster")]
        previous: Option<std::path::PathBuf>,
        /// With --cluster: an image that the node has, instead of one built here
        #[arg(long, requires = "cluster")]
        image: Option<String>,
    },
    /// Run the fuzz targets of metaproxy/fuzz
    Fuzz(fuzz::Fuzz),
    /// Boot Debian's kernels in QEMU and run interception, identity, guard and cleanup there (root)
    VmTest(vm::VmTest),
    /// Measure what metaproxy costs, beside what it is compared with; writes a report below target/bench (root)
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
