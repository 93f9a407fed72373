//! The nat tables, as iptables' own tools show them: legacy iptables and nftables each have one.

use std::io;
use std::process::{Command, Output};

use super::netlink;

/// A way in which iptables keeps rules.
pub(super) struct Tables {
    /// In words.
    pub name: &'static str,
    /// What shows them and what changes them, under the names that distributions give it.
    tools: [(&'static str, &'static str); 2],
    /// Whether there is a nat table, which can be told without any tool.
    has_nat: fn() -> io::Result<bool>,
    /// What `iptables --version` says where plain `iptables` is of this kind.
    is_default: fn(&str) -> bool,
}

pub(super) const TABLES: [Tables; 2] = [
    Tables {
        name: "legacy iptables",
        tools: [
            ("iptables-legacy-save", "iptables-legacy"),
            ("iptables-save", "iptables"),
        ],
        has_nat: legacy_has_nat,
        is_default: |version| !version.contains("nf_tables"),
    },
    Tables {
        name: "nftables",
        tools: [
            ("iptables-nft-save", "iptables-nft"),
            ("iptables-save", "iptables"),
        ],
        has_nat: || netlink::has("nat"),
        is_default: |version| version.contains("nf_tables"),
    },
];

/// The names of this network namespace's tables; no file where the module is not loaded.
fn legacy_has_nat() -> io::Result<bool> {
    match std::fs::read_to_string("/proc/net/ip_tables_names") {
        Ok(names) => Ok(names.lines().any(|name| name == "nat")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Tables {
    /// The tool that changes the nat table, and what the table holds; nothing where there is no such table.
    pub(super) fn nat(&self) -> Result<Option<(&'static str, String)>, String> {
        if !(self.has_nat)().map_err(|error| error.to_string())? {
            return Ok(None);
        }
        for (save, change) in self.tools {
            if change == "iptables" && !run(change, &["--version"]).is_ok_and(|said| (self.is_default)(&said))
            {
                continue;
            }
            match run(save, &["-t", "nat"]) {
                Ok(saved) => return Ok(Some((change, saved))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("{save}: {error}")),
            }
        }
        let [(save, _), _] = self.tools;
        Err(format!(
            "there is a nat table, and {save}, which shows them, is not installed here"
        ))
    }
}

/// What a program prints.
fn run(program: &str, arguments: &[&str]) -> io::Result<String> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program).args(arguments).output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    Err(io::Error::other(
        said.lines().next().unwrap_or_default().to_owned(),
    ))
}
