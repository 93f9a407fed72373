//! Finds the kernel modules that the guest loads, and sorts each after those that it depends on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// The modules of veth pairs, and those of nftables that the rules of the tests need.
const REQUIRED: [&str; 5] = ["veth", "nf_tables", "nft_chain_nat", "nft_nat", "nft_masq"];

/// The modules that newer kernels have built in.
const OPTIONAL: [&str; 2] = ["nft_counter", "crc32c_generic"];

/// A module, uncompressed.
pub struct Module {
    pub name: String,
    pub bytes: Vec<u8>,
}

/// Reads the modules in a kernel's directory, and sorts each after those that it depends on.
pub fn in_order(directory: &Path) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    find_modules(&directory.join("kernel"), &mut files)?;
    let mut modules = Vec::new();
    for name in OPTIONAL
        .iter()
        .filter(|name| files.contains_key(**name))
        .chain(&REQUIRED)
    {
        add(name, &files, &mut modules)?;
    }
    Ok(modules)
}

/// Lists the files of modules by their names, in which the kernel treats `-` as `_`.
fn find_modules(directory: &Path, found: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            find_modules(&path, found)?;
        } else if let Some((name, _)) = path.file_name().and_then(|name| name.to_str()?.split_once(".ko")) {
            found.insert(name.replace('-', "_"), path.clone());
        }
    }
    Ok(())
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, modules: &mut Vec<Module>) -> Result<()> {
    if modules.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files
        .get(name)
        .with_context(|| format!("the kernel has no module {name}"))?;
    let bytes = read(path)?;
    for dependency in dependencies(&bytes) {
        add(&dependency, files, modules)?;
    }
    modules.push(Module {
        name: name.to_owned(),
        bytes,
    });
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    }
    let output = Command::new("xz").arg("-dc").arg(path).output();
    let output = output.context("cannot run xz (package xz-utils)")?;
    ensure!(output.status.success(), "xz cannot unpack {}", path.display());
    Ok(output.stdout)
}

/// Reads the names in `depends=A,B` of a module's `MODULE_INFO`, whose fields end with a zero byte
/// (scripts/mod/modpost.c).
fn dependencies(module: &[u8]) -> Vec<String> {
    let depends = module
        .split(|byte| *byte == 0)
        .find_map(|field| field.strip_prefix(b"depends="));
    String::from_utf8_lossy(depends.unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::dependencies;

    #[test]
    fn a_modules_dependencies_are_read_from_what_it_says_of_itself() {
        let module = b"\x7fELF\0license=GPL\0depends=nf_tables,nf-nat\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["nf_tables", "nf_nat"]);
        assert!(dependencies(b"license=GPL\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }
}
