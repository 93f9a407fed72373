//! Network namespaces.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// A network namespace. Dropping it deletes the namespace if [`Netns::new`] made it (ip-netns(8)).
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    is_ours: bool,
}

impl Netns {
    /// Makes a namespace, with its loopback up.
    pub fn new(name: &str) -> Result<Self> {
        ip(&["netns", "add", name])?;
        let mut netns = Self::named(name)?;
        netns.is_ours = true;
        // Without duplicate address detection, link-local addresses can be used at once instead of a second or two
        // later.
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/all/accept_dad", "0")?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Opens an existing namespace by its name.
    pub fn named(name: &str) -> Result<Self> {
        let path = PathBuf::from("/run/netns").join(name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file,
            is_ours: false,
        })
    }

    /// Opens the namespace of this process.
    pub fn of_this_process() -> Result<Self> {
        Self::of_process(std::process::id())
    }

    /// Opens the namespace of a process.
    pub fn of_process(pid: u32) -> Result<Self> {
        let name = format!("/proc/{pid}/ns/net");
        let file = File::open(&name).with_context(|| format!("cannot open {name}"))?;
        Ok(Self {
            name,
            file,
            is_ours: false,
        })
    }

    /// Opens the same namespace once more.
    pub fn again(&self) -> Result<Self> {
        Ok(Self {
            name: self.name.clone(),
            file: self.file.try_clone()?,
            is_ours: false,
        })
    }

    /// Returns its name, for `ip -n`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its file, for setns(2).
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Adds an address, without duplicate address detection.
    pub fn add_address(&self, device: &str, address: &str) -> Result<()> {
        let mut words = vec!["-n", &self.name, "address", "add", address, "dev", device];
        if address.contains(':') {
            words.push("nodad");
        }
        ip(&words)
    }

    /// Runs a function in this namespace, on a thread of its own. Sockets that it makes stay in the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::Error>(work())
            });
            let result = thread
                .join()
                .map_err(|_| anyhow!("work in namespace {} panicked", self.name))?;
            result.with_context(|| format!("cannot enter namespace {}", self.name))
        })
    }

    /// Sets a sysctl of this namespace, by its path below `/proc/sys`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))?
            .with_context(|| format!("cannot set {name} in {}", self.name))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = ip(&["netns", "delete", &self.name]);
        }
    }
}

/// Runs `ip` (package iproute2).
pub fn ip(words: &[&str]) -> Result<()> {
    let output = Command::new("ip")
        .args(words)
        .output()
        .context("cannot run `ip` (package iproute2)")?;
    if !output.status.success() {
        bail!(
            "`ip {}` failed: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}
