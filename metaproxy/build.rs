//! Embeds the eBPF object that `cargo xtask build-ebpf` left under `target/bpf`. Without it the crate still
//! compiles, so that `cargo check`, clippy and rust-analyzer need no eBPF toolchain; the binary then says what is
//! missing.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("metaproxy.o");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let suffix = if env::var_os("CARGO_FEATURE_EBPF_LOG").is_some() {
        "-log"
    } else {
        ""
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate stands in the workspace");
    let object = root
        .join("target/bpf")
        .join(format!("metaproxy.{arch}{suffix}.o"));

    // A path that does not exist yet makes cargo run this script again each time, which is what is wanted.
    println!("cargo:rerun-if-changed={}", object.display());
    match fs::copy(&object, &out) {
        Ok(_) => {}
        Err(_) => fs::write(&out, b"").expect("OUT_DIR can be written to"),
    }
}
