//! Reads the nat tables of legacy iptables and of nftables with iptables' own tools.

use std::io;
use std::process::{Command, Output};

use super::netlink;

/// A backend of iptables, which has its own tables.
pub(super) struct Backend {
    /// The name of the backend.
    pub name: &'static str,
    /// The tools that show tables and that change them, by their names in distributions. The first pair is tried
    /// first.
    tools: [(&'static str, &'static str); 2],
    /// Reports, without a tool, whether there is a nat table.
    has_nat: fn() -> io::Result<bool>,
    /// Reports from the output of `iptables --version` whether plain `iptables` uses this backend.
    is_default: fn(&str) -> bool,
}

pub(super) const BACKENDS: [Backend; 2] = [
    Backend {
        name: "legacy iptables",
        tools: [
            ("iptables-legacy-save", "iptables-legacy"),
            ("iptables-save", "iptables"),
        ],
        has_nat: legacy_has_nat,
        is_default: |version| !version.contains("nf_tables"),
    },
    Backend {
        name: "nftables",
        tools: [
            ("iptables-nft-save", "iptables-nft"),
            ("iptables-save", "iptables"),
        ],
        has_nat: || netlink::has("nat"),
        is_default: |version| version.contains("nf_tables"),
    },
];

/// Reads the names of this network namespace's tables. The file does not exist if the module is not loaded.
fn legacy_has_nat() -> io::Result<bool> {
    match std::fs::read_to_string("/proc/net/ip_tables_names") {
        Ok(names) => Ok(names.lines().any(|name| name == "nat")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl Backend {
    /// Returns the tool that changes the nat table, and the table's rules; `None` if there is no such table.
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

/// Returns the output of a program.
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
