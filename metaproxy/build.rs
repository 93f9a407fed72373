//! Embeds the eBPF objects that `cargo xtask build-ebpf` left under `target/bpf`. Without them the crate still
//! compiles, so that `cargo check`, clippy and rust-analyzer need no eBPF toolchain; the binary then says what is
//! missing.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let arch = env::var_os("CARGO_CFG_TARGET_ARCH").ok_or("no CARGO_CFG_TARGET_ARCH")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("the crate stands in no workspace")?;
    let log = if env::var_os("CARGO_FEATURE_EBPF_LOG").is_some() {
        "-log"
    } else {
        ""
    };
    for (name, suffix) in [("metaproxy", log), ("guard", "")] {
        let object = root
            .join("target/bpf")
            .join(format!("{name}.{}{suffix}.o", arch.display()));
        // A path that does not exist yet makes cargo run this script again each time, which is what is wanted.
        println!("cargo:rerun-if-changed={}", object.display());
        let out = out.join(format!("{name}.o"));
        match fs::copy(&object, &out) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(&out, b"")?,
            result => drop(result?),
        }
    }
    Ok(())
}
