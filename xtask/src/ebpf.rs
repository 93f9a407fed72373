//! `cargo xtask build-ebpf` builds the eBPF objects with any toolchain that supports the target.
//!
//! The target needs its own `core`. Debian packages it prebuilt and as sources; rustup has the sources for nightly.
//! The object is the same for x86_64 and aarch64 (both are little-endian, and no program reads registers). Each is
//! still built with its own `bpf_target_arch`, and [`build`] checks that their programs are equal.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use metaproxy_common::names;

use crate::shell::{self, output, root, run, step};

/// Chooses the toolchain: `debian`, `debian-source`, or the name of a rustup toolchain that has rust-src.
const OVERRIDE: &str = "METAPROXY_EBPF_TOOLCHAIN";

const TARGET: &str = "bpfel-unknown-none";
const ARCHITECTURES: [&str; 2] = ["x86_64", "aarch64"];

/// The directory of Debian's compiler. rustup's compiler may come first in `PATH`.
const DEBIAN_BIN: &str = "/usr/bin";

/// One of the objects that the agent embeds.
struct Object {
    /// The name of its file without the architecture and `.o`.
    name: &'static str,
    binary: &'static str,
    /// Whether it has a variant that logs.
    logs: bool,
    programs: &'static [&'static str],
    maps: &'static [&'static str],
}

const OBJECTS: [Object; 2] = [
    Object {
        name: "metaproxy",
        binary: "metaproxy-ebpf",
        logs: true,
        programs: &names::PROGRAMS,
        maps: &names::MAPS,
    },
    Object {
        name: "guard",
        binary: "metaproxy-guard",
        logs: false,
        programs: &names::GUARD_PROGRAMS,
        maps: &names::GUARD_MAPS,
    },
];

/// A toolchain that can build for the eBPF target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Toolchain {
    /// Debian's compiler and its prebuilt `core`.
    DebianPrebuilt,
    /// Debian's compiler and its sources.
    DebianSource,
    /// rustup's, with rust-src.
    Rustup(String),
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebianPrebuilt => f.write_str("Debian's rustc with its prebuilt core"),
            Self::DebianSource => f.write_str("Debian's rustc and library sources"),
            Self::Rustup(name) => write!(f, "rustup's {name} with rust-src"),
        }
    }
}

const HOW_TO_GET_ONE: &str = "no Rust toolchain here can build for eBPF. Each of these commands installs one:
  sudo cargo xtask setup                                     (Debian and Ubuntu: installs what is missing)
  apt-get install rustc-web cargo-web libstd-rust-web-dev-bpf
  rustup toolchain install nightly --component rust-src      (and `cargo install bpf-linker`)";

impl Toolchain {
    /// Returns the toolchain of the override, or the first that exists: Debian's prebuilt core, Debian's sources,
    /// rustup's nightly.
    pub fn find() -> Result<Self> {
        if let Some(name) = std::env::var_os(OVERRIDE).filter(|name| !name.is_empty()) {
            let name = name
                .into_string()
                .ok()
                .with_context(|| format!("{OVERRIDE} is not text"))?;
            let chosen = match name.as_str() {
                "debian" => Self::DebianPrebuilt,
                "debian-source" => Self::DebianSource,
                _ => Self::Rustup(name.clone()),
            };
            ensure!(
                chosen.is_there(),
                "{OVERRIDE}={name}: not installed, or without the library for eBPF"
            );
            return Ok(chosen);
        }
        [
            Self::DebianPrebuilt,
            Self::DebianSource,
            Self::Rustup("nightly".to_owned()),
        ]
        .into_iter()
        .find(Self::is_there)
        .context(HOW_TO_GET_ONE)
    }

    fn is_there(&self) -> bool {
        let debian =
            || Path::new(DEBIAN_BIN).join("rustc").exists() && Path::new(DEBIAN_BIN).join("cargo").exists();
        match self {
            Self::DebianPrebuilt => {
                debian()
                    && sysroot(&debian_rustc())
                        .is_some_and(|root| root.join(format!("lib/rustlib/{TARGET}/lib")).is_dir())
            }
            Self::DebianSource => debian() && sysroot(&debian_rustc()).is_some_and(|root| has_sources(&root)),
            Self::Rustup(name) => {
                shell::has("rustup")
                    && output(Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]))
                        .is_some_and(|root| has_sources(Path::new(&root)))
            }
        }
    }

    /// Prepares `cargo build` with this toolchain.
    fn cargo(&self) -> Command {
        let mut command = match self {
            Self::DebianPrebuilt | Self::DebianSource => {
                let mut command = Command::new(Path::new(DEBIAN_BIN).join("cargo"));
                command.env("RUSTC", debian_rustc());
                command
            }
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo"]);
                command
            }
        };
        command
            .arg("build")
            .current_dir(root())
            .env_remove("RUSTFLAGS")
            .env_remove("RUSTUP_TOOLCHAIN");
        match self {
            // aya-ebpf uses an unstable feature. No other crate may use one.
            Self::DebianPrebuilt => command.env("RUSTC_BOOTSTRAP", "aya_ebpf"),
            Self::DebianSource => command.env("RUSTC_BOOTSTRAP", "1").args(["-Z", "build-std=core"]),
            Self::Rustup(_) => command.args(["-Z", "build-std=core"]),
        };
        command
    }
}

fn debian_rustc() -> PathBuf {
    Path::new(DEBIAN_BIN).join("rustc")
}

fn sysroot(rustc: &Path) -> Option<PathBuf> {
    output(Command::new(rustc).args(["--print", "sysroot"])).map(PathBuf::from)
}

fn has_sources(sysroot: &Path) -> bool {
    sysroot
        .join("lib/rustlib/src/rust/library/core/src/lib.rs")
        .exists()
}

/// Returns the bpf-linker that setup has built, or the one in `PATH`.
pub fn linker() -> Option<PathBuf> {
    Some(tools().join("bin/bpf-linker"))
        .filter(|path| path.is_file())
        .or_else(|| shell::find("bpf-linker"))
}

/// Returns the directory of the tools that setup builds.
pub fn tools() -> PathBuf {
    root().join("target/tools")
}

/// Builds the objects for both architectures, plain and logging, and checks each.
pub fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let linker = linker().context(
        "bpf-linker is missing: `sudo cargo xtask setup` builds it, or `cargo install bpf-linker` if its LLVM is at \
         least as new as rustc's",
    )?;
    step(&format!("eBPF objects, built with {toolchain}"));
    let out = root().join("target/bpf");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    // Only one build runs at a time: a second one could read objects that are not checked yet.
    let turns = fs::File::create(out.join(".lock")).context("cannot make the lock file of eBPF builds")?;
    turns.lock().context("cannot take the lock of eBPF builds")?;
    for arch in ARCHITECTURES {
        for (feature, suffix) in [(None, ""), (Some("log"), "-log")] {
            for object in &OBJECTS {
                if feature.is_some() && !object.logs {
                    continue;
                }
                let built = build_one(&toolchain, &linker, arch, feature, object.binary)?;
                let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
                check(&bytes, object)
                    .with_context(|| format!("the object {} for {arch} is not sound", object.name))?;
                let path = out.join(format!("{}.{arch}{suffix}.o", object.name));
                // An unchanged object is not written again, because cargo would then rebuild the agent.
                if fs::read(&path).ok().as_ref() != Some(&bytes) {
                    // The rename is atomic: a build that embeds the object must not read a partial file.
                    let new = path.with_extension("new");
                    fs::write(&new, bytes)
                        .and_then(|()| fs::rename(&new, &path))
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
    }
    for object in &OBJECTS {
        let read = |arch: &str| fs::read(out.join(format!("{}.{arch}.o", object.name)));
        ensure!(
            code(&read(ARCHITECTURES[0])?)? == code(&read(ARCHITECTURES[1])?)?,
            "the programs of {} differ between architectures",
            object.name
        );
    }
    Ok(())
}

fn build_one(
    toolchain: &Toolchain,
    linker: &Path,
    arch: &str,
    feature: Option<&str>,
    binary: &str,
) -> Result<PathBuf> {
    let target_dir = root().join("target/ebpf").join(arch);
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        format!("-Clinker={}", linker.display()),
        // The object must not contain paths of this machine.
        format!("--remap-path-prefix={}=.", root().display()),
    ];
    let mut command = toolchain.cargo();
    command
        .args([
            "--quiet",
            "--locked",
            "--profile",
            "ebpf",
            "--package",
            "metaproxy-ebpf",
            "--bin",
            binary,
            "--target",
            TARGET,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .args(feature.map(|feature| format!("--features={feature}")))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    run(&mut command)?;
    Ok(target_dir.join(TARGET).join("ebpf").join(binary))
}

/// Checks what the loader and the kernel rely on (elf(5)): the object is 64-bit, little-endian, of machine BPF, and has
/// BTF and all its programs and maps.
fn check(object: &[u8], wanted: &Object) -> Result<()> {
    const EM_BPF: u16 = 247;
    ensure!(object.starts_with(b"\x7fELF"), "it is not an ELF file");
    ensure!(
        object.get(4..6) == Some(&[2, 1]),
        "it is not 64-bit little-endian"
    );
    let machine = object
        .get(18..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_le_bytes);
    ensure!(machine == Some(EM_BPF), "it is not for BPF");
    for name in [".BTF", ".maps"].iter().chain(wanted.programs).chain(wanted.maps) {
        let stored = [name.as_bytes(), &[0]].concat();
        if !object.windows(stored.len()).any(|window| window == stored) {
            bail!("{name} is missing from it");
        }
    }
    Ok(())
}

/// Returns the instructions of each program, ordered by section.
fn code(object: &[u8]) -> Result<Vec<Vec<u8>>> {
    let object = aya_obj::Object::parse(object).context("aya cannot read the object")?;
    let mut functions: Vec<_> = object
        .functions
        .iter()
        .map(|(key, function)| (*key, function))
        .collect();
    functions.sort_by_key(|(key, _)| *key);
    let bytes = |instruction: &aya_obj::generated::bpf_insn| {
        let regs = [
            instruction.code,
            instruction.dst_reg() | (instruction.src_reg() << 4),
        ];
        [
            &regs[..],
            &instruction.off.to_le_bytes(),
            &instruction.imm.to_le_bytes(),
        ]
        .concat()
    };
    Ok(functions
        .into_iter()
        .map(|(_, function)| function.instructions.iter().flat_map(bytes).collect())
        .collect())
}
