//! A snapshot of a node's network, to compare byte for byte.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::netns::Netns;

/// Lists rules, routes and interfaces of a network namespace.
pub fn snapshot(netns: &Netns) -> Result<String> {
    // `iptables-save` is one of the two backends, and does not show the other's rules.
    let commands: [&[&str]; 10] = [
        &["iptables-legacy-save"],
        &["iptables-nft-save"],
        &["ip6tables-legacy-save"],
        &["ip6tables-nft-save"],
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
        let lines: Vec<String> = lines.map(without_counters).collect();
        writeln!(snapshot, "$ {shown}\n{}", lines.join("\n"))?;
    }
    Ok(snapshot)
}

/// Removes the counters of a chain (`:PREROUTING ACCEPT [7:420]`) or of a rule of nftables (`counter packets 7 bytes
/// 420`), which change with every packet.
fn without_counters(line: &str) -> String {
    if let Some((chain, _)) = line.split_once(" [").filter(|_| line.starts_with(':')) {
        return chain.to_owned();
    }
    let mut words: Vec<&str> = line.split(' ').collect();
    if let Some(at) = words.iter().position(|word| *word == "packets") {
        words.drain(at..(at + 4).min(words.len()));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_changes_nothing() {
        for (line, want) in [
            (":PREROUTING ACCEPT [7:420]", ":PREROUTING ACCEPT"),
            (
                "ip daddr 10.0.0.1 counter packets 7 bytes 420 drop",
                "ip daddr 10.0.0.1 counter drop",
            ),
            ("\t\tcounter packets 7 bytes 420", "\t\tcounter"),
            (
                "-A PREROUTING -d 10.0.0.1/32 -j DROP",
                "-A PREROUTING -d 10.0.0.1/32 -j DROP",
            ),
        ] {
            assert_eq!(without_counters(line), want);
        }
    }
}
