//! Downloads kernels and QEMU from Debian's archive, and unpacks them without installing them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{dir, quietly};
use crate::shell::{find, has, run, step};

/// A kernel that can be booted.
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The file that QEMU boots.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

/// An installed or unpacked QEMU.
pub struct Qemu {
    binary: PathBuf,
    /// The directory where it was unpacked; `None` if it is installed.
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// Prepares a QEMU command. The caller adds the arguments that describe the machine.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        if let Some(root) = &self.unpacked {
            let libraries = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"]
                .map(|path| root.join(path).display().to_string())
                .join(":");
            command.env("LD_LIBRARY_PATH", libraries);
            for path in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(path));
            }
        }
        command
    }
}

/// Returns the installed QEMU, or unpacks Debian's packages of it: installing them could remove tools of another
/// version.
pub fn qemu() -> Result<Qemu> {
    if let Some(binary) = find("qemu-system-x86_64") {
        return Ok(Qemu {
            binary,
            unpacked: None,
        });
    }
    let root = dir().join("qemu");
    let binary = root.join("usr/bin/qemu-system-x86_64");
    if !binary.is_file() {
        ensure!(
            has("apt-get") && has("dpkg-deb"),
            "qemu-system-x86_64 is missing, and this is not Debian or Ubuntu: install it, and run this again"
        );
        step("QEMU, unpacked into target/vm/qemu");
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        let plan = quietly(Command::new("apt-get").args([
            "-s",
            "install",
            "--no-install-recommends",
            "qemu-system-x86",
        ]))?;
        // Inst PACKAGE (VERSION …) or Inst PACKAGE [OLD] (VERSION …)
        let packages: Vec<String> = plan
            .lines()
            .filter_map(|line| {
                let rest = line.strip_prefix("Inst ")?;
                let (_, version) = rest.split_once('(')?;
                Some(format!(
                    "{}={}",
                    rest.split(' ').next()?,
                    version.split(' ').next()?
                ))
            })
            .collect();
        ensure!(!packages.is_empty(), "apt-get has no qemu-system-x86");
        let unpacking = dir().join("qemu.new");
        unpack(&mut Command::new("apt-get"), &packages, &unpacking)?;
        fs::rename(&unpacking, &root)?;
    }
    Ok(Qemu {
        binary,
        unpacked: Some(root),
    })
}

/// Downloads packages and unpacks them into one tree.
fn unpack(apt_get: &mut Command, packages: &[String], into: &Path) -> Result<()> {
    let debs = into.join("debs");
    if into.exists() {
        fs::remove_dir_all(into)?;
    }
    fs::create_dir_all(&debs)?;
    quietly(
        apt_get
            .current_dir(&debs)
            .args(["-qq", "download"])
            .args(packages),
    )?;
    for entry in fs::read_dir(&debs)? {
        quietly(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(into))?;
    }
    fs::remove_dir_all(&debs).context("cannot remove the packages")
}

/// Downloads the newest cloud kernel of a release of Debian to `target/vm`.
pub fn kernel(suite: &str, from_security: bool) -> Result<Kernel> {
    let root = dir().join(suite);
    if !root.is_dir() {
        ensure!(
            has("apt-get") && has("dpkg-deb"),
            "kernels are downloaded with apt-get and dpkg-deb, which are missing: install them, and run this again"
        );
        step(&format!("the kernel of Debian {suite}"));
        let apt = PrivateApt::of(suite, from_security)?;
        let packages = apt.kernel_packages()?;
        let unpacking = dir().join(format!("{suite}.new"));
        unpack(&mut apt.command("apt-get"), &packages, &unpacking)?;
        fs::rename(&unpacking, &root)?;
    }
    for modules in ["lib/modules", "usr/lib/modules"].map(|path| root.join(path)) {
        let Some(entry) = fs::read_dir(&modules).ok().and_then(|mut entries| entries.next()) else {
            continue;
        };
        let modules = entry?.path();
        let release = modules
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .context("a directory of modules has no name")?;
        let images = [
            root.join(format!("boot/vmlinuz-{release}")),
            modules.join("vmlinuz"),
        ];
        let image = images.into_iter().find(|image| image.is_file());
        if let (Some(image), true) = (image, modules.join("kernel").is_dir()) {
            return Ok(Kernel {
                release,
                image,
                modules,
            });
        }
    }
    bail!(
        "{} contains no kernel with modules; remove the directory, and run this again to download it",
        root.display()
    )
}

/// A configuration of apt with its own lists and settings, which leaves those of this machine unchanged.
struct PrivateApt {
    config: PathBuf,
    suite: String,
}

impl PrivateApt {
    fn of(suite: &str, from_security: bool) -> Result<Self> {
        let dir = dir().join("apt").join(suite);
        for path in ["state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(path))?;
        }
        fs::write(dir.join("state/status"), "")?;
        let label = if from_security {
            "Debian-Security"
        } else {
            "Debian"
        };
        let name = if from_security {
            format!("{suite}-security")
        } else {
            suite.to_owned()
        };
        let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let source = format!("deb [signed-by={keyring}] {} {name} main\n", archive(label)?);
        fs::write(dir.join("sources.list"), source)?;
        let shown = dir.display();
        let config = dir.join("apt.conf");
        // This machine's own configuration is left out, because its hooks may change other files. Dates are not
        // checked, because a mirror may be older than the archive's Valid-Until date.
        let text = format!(
            "Dir::Etc::parts \"/dev/null\";\nDir::Etc::main \"/dev/null\";\nDir::Etc::sourcelist \
             \"{shown}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\nDir::Etc::preferences \
             \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\nDir::State \"{shown}/state\";\nDir::State::status \
             \"{shown}/state/status\";\nDir::Cache \"{shown}/cache\";\nAcquire::Languages \
             \"none\";\nAcquire::Check-Valid-Until \"false\";\nAcquire::Check-Date \"false\";\nAPT::Sandbox::User \
             \"root\";\nAPT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\n"
        );
        fs::write(&config, text)?;
        let own = Self { config, suite: name };
        quietly(own.command("apt-get").args(["-qq", "update"]))?;
        Ok(own)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", &self.config);
        command
    }

    /// Returns the packages of the newest kernel: one, or several in releases that split it.
    fn kernel_packages(&self) -> Result<Vec<String>> {
        let depends = |package: &str| -> Result<Vec<String>> {
            let shown = quietly(
                self.command("apt-cache")
                    .args(["show", "--no-all-versions", package]),
            )?;
            let line = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
            let names = line.unwrap_or_default().split(", ");
            Ok(names
                .map(|name| name.split(' ').next().unwrap_or_default().to_owned())
                .collect())
        };
        let image = depends("linux-image-cloud-amd64")?
            .into_iter()
            .find(|name| name.starts_with("linux-image-") && name.ends_with("-cloud-amd64"))
            .with_context(|| format!("{} has no cloud kernel", self.suite))?;
        let mut packages: Vec<String> = depends(&image)?
            .into_iter()
            .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
            .collect();
        packages.push(image);
        Ok(packages)
    }
}

/// Returns the URL of the Debian archive that this machine uses.
fn archive(label: &str) -> Result<String> {
    let targets = quietly(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(LABEL) $(REPO_URI)",
        "Created-By: Packages",
    ]))?;
    let found = targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(own, _)| *own == label);
    found
        .map(|(_, uri)| uri.trim_end_matches('/').to_owned())
        .with_context(|| format!("apt has no archive labelled {label}: add Debian's archive to its sources"))
}
