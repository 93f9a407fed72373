//! What a node's network looks like, byte for byte.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::netns::Netns;

/// Rules, routes and interfaces of a network namespace.
pub fn snapshot(netns: &Netns) -> Result<String> {
    let commands: [&[&str]; 8] = [
        &["iptables-save"],
        &["ip6tables-save"],
        &["nft", "list", "ruleset"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "link"],
    ];
    let mut snapshot = String::new();
    for words in commands {
        let output = netns
            .run(|| Command::new(words[0]).args(&words[1..]).output())?
            .with_context(|| format!("cannot run {}", words[0]))?;
        let shown = words.join(" ");
        ensure!(
            output.status.success(),
            "`{shown}` failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
        let text = String::from_utf8_lossy(&output.stdout);
        // iptables-save begins and ends with the time of day.
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        writeln!(
            snapshot,
            "$ {}\n{}",
            words.join(" "),
            lines.collect::<Vec<_>>().join("\n")
        )?;
    }
    Ok(snapshot)
}
