//! `cargo xtask image` makes the container image as an OCI archive, without any container engine.
//!
//! The image contains a static binary and the CA roots that Mozilla trusts. The same sources and toolchain give the
//! same bytes: files have no dates and no owners, and the binary does not contain the path of its build directory.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, ValueEnum};
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use crate::shell::{cargo, has, root, run, step};
use crate::{ebpf, setup};

/// The maximum size of the image, in bytes. Every node of a cluster pulls the image.
const MAX_IMAGE_SIZE: usize = 20_000_000;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The path at which Go, OpenSSL and rustls-native-certs look for roots on Debian.
const CA_ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

/// The arguments of `cargo xtask image`.
#[derive(Debug, Args)]
pub struct Image {
    /// The processor architecture [default: this machine's]
    #[arg(long)]
    arch: Option<Arch>,

    /// The image's full name, with host and tag, in container runtimes
    #[arg(long, default_value = concat!("docker.io/library/metaproxy:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Optimise less, so that the build is faster; for tests
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arch {
    Amd64,
    Arm64,
}

impl Arch {
    fn of_this_machine() -> Self {
        if Self::Arm64.is_ours() {
            Self::Arm64
        } else {
            Self::Amd64
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    fn is_ours(self) -> bool {
        self.target().starts_with(std::env::consts::ARCH)
    }
}

/// Builds the image and prints the path of the archive.
pub fn make(image: &Image) -> Result<()> {
    setup::for_demo()?;
    ebpf::build()?;
    let profile = if image.quick { QUICK } else { "release" };
    let path = archive(
        image.arch.unwrap_or_else(Arch::of_this_machine),
        &image.name,
        profile,
    )?;
    println!("{}", path.display());
    Ok(())
}

/// Makes an archive for this machine's processor with a binary that is built quickly, for tests.
pub fn quick_archive_of_this_machine(name: &str) -> Result<PathBuf> {
    archive(Arch::of_this_machine(), name, QUICK)
}

/// Cargo's profile for images of tests: full optimisation takes longer than the tests.
const QUICK: &str = "quick";

fn archive(arch: Arch, name: &str, profile: &str) -> Result<PathBuf> {
    let binary = build(arch, profile)?;
    let binary = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let packed = pack(arch, name, &binary)?;
    if packed.len() > MAX_IMAGE_SIZE {
        bail!(
            "the image has {} bytes; at most {MAX_IMAGE_SIZE} are allowed",
            packed.len()
        );
    }
    let path = root().join(format!("target/image/metaproxy-{VERSION}-{}.tar", arch.label()));
    fs::write(&path, &packed).with_context(|| format!("cannot write {}", path.display()))?;
    step(&format!(
        "image {name} for {}: {:.1} MB, sha256 {}",
        arch.label(),
        packed.len() as f64 / 1e6,
        hex(&packed)
    ));
    Ok(path)
}

/// Builds a static binary, because the image contains no libraries.
fn build(arch: Arch, profile: &str) -> Result<PathBuf> {
    step(&format!("a static binary for {}", arch.label()));
    let target = arch.target();
    let dir = root().join("target/image");
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
        PathBuf::from,
    );
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        remap(&root(), "/metaproxy"),
        remap(&home, "/cargo"),
    ];
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--locked", "--package", "metaproxy"])
        .args(["--profile", profile, "--target", target])
        .arg("--target-dir")
        .arg(&dir)
        // Paths may contain spaces, at which cargo splits RUSTFLAGS.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    if !arch.is_ours() {
        let prefix = format!("{}-linux-gnu", target.split('-').next().unwrap_or_default());
        let gcc = format!("{prefix}-gcc");
        if !has(&gcc) {
            bail!(
                "{gcc} is missing: `apt-get install gcc-{prefix}`, and `rustup target add {target}` for the library",
                prefix = prefix.replace('_', "-")
            );
        }
        let variable = target.to_uppercase().replace('-', "_");
        command
            .env(format!("CARGO_TARGET_{variable}_LINKER"), &gcc)
            .env(format!("CC_{}", target.replace('-', "_")), &gcc);
    }
    run(&mut command)?;
    Ok(dir.join(target).join(profile).join("metaproxy"))
}

/// Makes the archive: an OCI image layout, and the manifest by which `docker load` recognises older archives.
fn pack(arch: Arch, name: &str, binary: &[u8]) -> Result<Vec<u8>> {
    let layer = tar(&[
        ("etc/", None),
        ("etc/ssl/", None),
        ("etc/ssl/certs/", None),
        (CA_ROOTS, Some((0o644, ca_roots().as_bytes()))),
        ("metaproxy", Some((0o755, binary))),
    ])?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&layer)?;
    let diff = hex(&layer);
    let layer = gzip.finish()?;

    let config = serde_json::to_vec(&json!({
        "architecture": arch.label(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/metaproxy"],
            "Labels": {
                "org.opencontainers.image.title": "metaproxy",
                "org.opencontainers.image.version": VERSION,
                "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": [descriptor("layer.v1.tar+gzip", &layer)],
    }))?;
    let mut of_manifest = descriptor("manifest.v1+json", &manifest);
    of_manifest["platform"] = json!({ "architecture": arch.label(), "os": "linux" });
    let tag = name.rsplit(':').next().unwrap_or(name);
    of_manifest["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": tag,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [of_manifest],
    }))?;
    let docker = serde_json::to_vec(&json!([{
        "Config": blob(&config),
        "RepoTags": [name],
        "Layers": [blob(&layer)],
    }]))?;
    tar(&[
        ("oci-layout", Some((0o644, br#"{"imageLayoutVersion":"1.0.0"}"#))),
        ("index.json", Some((0o644, &index))),
        ("manifest.json", Some((0o644, &docker))),
        ("blobs/", None),
        ("blobs/sha256/", None),
        (&blob(&manifest), Some((0o644, &manifest))),
        (&blob(&config), Some((0o644, &config))),
        (&blob(&layer), Some((0o644, &layer))),
    ])
}

fn descriptor(kind: &str, content: &[u8]) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{}", hex(content)),
        "size": content.len(),
    })
}

fn blob(content: &[u8]) -> String {
    format!("blobs/sha256/{}", hex(content))
}

fn hex(content: &[u8]) -> String {
    let digest = digest(&SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file's mode and content, or a directory.
type File<'a> = Option<(u32, &'a [u8])>;

/// Packs files and directories, owned by root and without dates.
fn tar(entries: &[(&str, File<'_>)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, file) in entries {
        let mut header = tar::Header::new_ustar();
        let (kind, mode, content) = match file {
            Some((mode, content)) => (tar::EntryType::Regular, *mode, *content),
            None => (tar::EntryType::Directory, 0o755, &[][..]),
        };
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content)?;
    }
    Ok(tar.into_inner()?)
}

/// Returns Mozilla's roots, of the version in the lock file.
fn ca_roots() -> String {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Read as _;

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!(entry.header().uid().unwrap(), 0);
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(path, content);
        }
        files
    }

    #[test]
    fn the_archive_is_the_same_each_time_and_every_digest_in_it_leads_to_its_content() {
        let name = "localhost/metaproxy:1";
        let archive = pack(Arch::Amd64, name, b"binary").unwrap();
        assert_eq!(archive, pack(Arch::Amd64, name, b"binary").unwrap());
        assert_ne!(archive, pack(Arch::Arm64, name, b"binary").unwrap());
        let found = files(&archive);
        for (path, content) in &found {
            if let Some(digest) = path
                .strip_prefix("blobs/sha256/")
                .filter(|digest| !digest.is_empty())
            {
                assert_eq!(digest, hex(content));
            }
        }
        let json = |path: &str| -> Value { serde_json::from_slice(&found[path]).unwrap() };
        let follow = |descriptor: &Value| {
            let digest = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let content = &found[&format!("blobs/{digest}")];
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index = json("index.json");
        assert_eq!(
            index["manifests"][0]["annotations"]["io.containerd.image.name"],
            name
        );
        let manifest: Value = serde_json::from_slice(follow(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(follow(&manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"][0], "/metaproxy");
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(follow(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", hex(&layer)));
        assert_eq!(files(&layer)["metaproxy"], b"binary");
        let docker = json("manifest.json");
        assert!(found.contains_key(docker[0]["Layers"][0].as_str().unwrap()));
    }

    #[test]
    fn the_roots_are_pem() {
        let pem = ca_roots();
        let count = webpki_root_certs::TLS_SERVER_ROOT_CERTS.len();
        assert!(count > 50);
        assert_eq!(pem.matches("-----BEGIN CERTIFICATE-----").count(), count);
        assert!(pem.lines().all(|line| line.len() <= 64));
    }
}
