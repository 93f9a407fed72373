//! Makes the guest's file system: an uncompressed cpio archive (Documentation/driver-api/early-userspace).

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::debian::Kernel;
use super::{dir, modules, quietly};
use crate::shell::{find, root};

/// The guest's path of the test program.
pub const PROGRAM: &str = "/lab";
/// The guest's directory of kernel modules.
pub const MODULES: &str = "/modules";

/// Makes the part of the archive that is the same for every kernel.
pub fn base(test: &Path) -> Result<PathBuf> {
    let mut archive = Archive::default();
    for name in ["dev", "proc", "sys", "run", "tmp", "var"] {
        archive.dir(&format!("/{name}"));
    }
    archive.device("/dev/console", 5, 1);
    archive.device("/dev/null", 1, 3);
    let binaries = root().join("target/debug");
    let agent = binaries.join("metaproxy");
    let client = binaries.join("metaproxy-lab");
    // The tests run the agent and the client from the paths at which they were built.
    let programs = [
        (binaries.join("xtask"), "/init".to_owned()),
        (client.clone(), client.display().to_string()),
        (agent.clone(), agent.display().to_string()),
        (test.to_owned(), PROGRAM.to_owned()),
    ];
    let mut libraries = BTreeSet::new();
    for (built, path) in programs {
        let stripped = dir().join("stripped");
        quietly(Command::new("strip").arg("-o").arg(&stripped).arg(&built))?;
        archive.file(&path, &fs::read(&stripped)?);
        libraries.extend(libraries_of(&built)?);
    }
    for (name, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let program = find(name).with_context(|| format!("`{name}` is missing (package {package})"))?;
        archive.file(&format!("/bin/{name}"), &fs::read(&program)?);
        libraries.extend(libraries_of(&program)?);
    }
    // `ip rule … ipproto tcp` reads this file.
    archive.file("/etc/protocols", b"tcp\t6\tTCP\nudp\t17\tUDP\n");
    // The agent has a TLS client, which needs root certificates even though it makes no TLS connections here.
    let roots = "/etc/ssl/certs/ca-certificates.crt";
    archive.file(
        roots,
        &fs::read(roots).with_context(|| format!("cannot read {roots}"))?,
    );
    for library in libraries {
        let bytes = fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        archive.file(&library.display().to_string(), &bytes);
    }
    let path = dir().join("base.cpio");
    archive.write(&path)?;
    Ok(path)
}

/// Appends the modules of one kernel to the archive.
pub fn with_modules(base: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let mut archive = Archive::default();
    archive.dir(MODULES);
    for (place, module) in modules::in_order(&kernel.modules)?.iter().enumerate() {
        archive.file(&format!("{MODULES}/{place:02}-{}.ko", module.name), &module.bytes);
    }
    let path = dir().join("initrd.cpio");
    fs::copy(base, &path)?;
    let own = dir().join("modules.cpio");
    archive.write(&own)?;
    let mut whole = fs::OpenOptions::new().append(true).open(&path)?;
    whole.write_all(&fs::read(&own)?)?;
    Ok(path)
}

/// Lists the shared libraries of a program by the paths under which it looks for them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = quietly(Command::new("ldd").arg(program))?;
    let paths = listed.lines().filter_map(|line| {
        let path = match line.split_once("=> ") {
            Some((_, path)) => path,
            None => line,
        };
        let path = path.trim().split(' ').next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// A cpio archive in the "newc" format.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    fn dir(&mut self, path: &str) {
        self.entry(path, DIRECTORY, (0, 0), &[]);
    }

    fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER_DEVICE, (major, minor), &[]);
    }

    fn file(&mut self, path: &str, bytes: &[u8]) {
        self.entry(path, FILE, (0, 0), bytes);
    }

    /// Adds an entry and its parent directories.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        let name = path.trim_start_matches('/');
        if !self.names.insert(name.to_owned()) {
            return;
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.dir(parent);
        }
        self.header(name, mode, device, bytes);
    }

    fn header(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), bytes: &[u8]) {
        let fields = [
            self.names.len() as u32,
            mode,
            0,
            0,
            1,
            0,
            bytes.len() as u32,
            0,
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }

    fn write(mut self, path: &Path) -> Result<()> {
        self.header("TRAILER!!!", 0, (0, 0), &[]);
        let length = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(length, 0);
        fs::write(path, &self.bytes).with_context(|| format!("cannot write {}", path.display()))
    }
}
