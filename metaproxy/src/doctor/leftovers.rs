//! What kube2iam, kiam and the EKS Pod Identity agent leave behind when they are gone: rules that send the metadata
//! service's connections to a port where nobody listens any more, and an interface.
//!
//! Rules are read and removed by iptables' own tools, as only they know how they wrote them.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::Finding;
use super::node::processes;

/// Of the EKS Pod Identity agent (its configuration package names it).
const POD_IDENTITY_LINK: &str = "pod-id-link0";

/// How a process that is still there is called (`comm`, 15 characters).
const DAEMONS: [(&str, &str); 3] = [
    ("kube2iam", "kube2iam"),
    ("kiam", "kiam"),
    ("eks-pod-identit", "the EKS Pod Identity agent"),
];

/// Both ways in which iptables keeps rules, for both families: what shows them, what changes them, and a file that is empty
/// where there are none (looking would load the module otherwise).
const TOOLS: [(&str, &str, Option<&str>); 4] = [
    (
        "iptables-legacy-save",
        "iptables-legacy",
        Some("/proc/net/ip_tables_names"),
    ),
    ("iptables-nft-save", "iptables-nft", None),
    (
        "ip6tables-legacy-save",
        "ip6tables-legacy",
        Some("/proc/net/ip6_tables_names"),
    ),
    ("ip6tables-nft-save", "ip6tables-nft", None),
];

const METADATA: [&str; 4] = [
    "169.254.169.254/32",
    "169.254.169.254",
    "fd00:ec2::254/128",
    "fd00:ec2::254",
];

/// Something that nobody needs any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leftover {
    /// In words.
    pub what: String,
    /// Program and arguments that remove it.
    pub removal: Vec<String>,
}

impl Leftover {
    /// The command as one would type it.
    pub fn command(&self) -> String {
        let words = self.removal.iter().map(String::as_str);
        shlex::try_join(words).unwrap_or_else(|_| self.removal.join(" "))
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the program says.
    pub fn remove(&self) -> Result<(), String> {
        let (program, arguments) = self.removal.split_first().ok_or("no command")?;
        let output = Command::new(program)
            .args(arguments)
            .output()
            .map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// What was found, and what could not be looked at.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub leftovers: Vec<Leftover>,
    /// Daemons that are still running: what they made is in use.
    running: Vec<&'static str>,
    unseen: Vec<String>,
}

pub(super) fn find() -> Found {
    let mut found = Found::default();
    let processes = processes();
    let is_running = |comm: &str| processes.iter().any(|name| name == comm);
    found.running = DAEMONS
        .iter()
        .filter(|(comm, _)| is_running(comm))
        .map(|(_, name)| *name)
        .collect();
    for (save, change, names) in TOOLS {
        if names.is_some_and(|names| fs::read_to_string(names).unwrap_or_default().trim().is_empty()) {
            continue;
        }
        match Command::new(save).args(["-t", "nat"]).output() {
            Ok(output) => found
                .leftovers
                .extend(rules(&String::from_utf8_lossy(&output.stdout), change)),
            // Legacy rules are there, and nothing that could show them.
            Err(_) if names.is_some() => found.unseen.push(format!("{change} (legacy tables are in use)")),
            Err(_) if Path::new("/proc/net/netfilter").exists() => found.unseen.push(change.to_owned()),
            Err(_) => {}
        }
    }
    if nix::net::if_::if_nametoindex(POD_IDENTITY_LINK).is_ok() {
        found.leftovers.push(Leftover {
            what: format!("interface {POD_IDENTITY_LINK} of the EKS Pod Identity agent"),
            removal: ["ip", "link", "delete", POD_IDENTITY_LINK]
                .map(str::to_owned)
                .into(),
        });
    }
    found
}

/// Of the nat table as `iptables-save` writes it, rules that send the metadata service's port 80 elsewhere.
fn rules(saved: &str, change: &str) -> Vec<Leftover> {
    let mut found = Vec::new();
    for line in saved.lines().filter(|line| line.starts_with("-A ")) {
        let Some(words) = shlex::split(line) else {
            continue;
        };
        let value = |names: &[&str]| {
            let at = words.iter().position(|word| names.contains(&word.as_str()))?;
            // `! -d` and the like mean the opposite.
            let is_negated = at > 0 && words.get(at - 1).is_some_and(|word| word == "!");
            words.get(at + 1).filter(|_| !is_negated).map(String::as_str)
        };
        let is_metadata =
            value(&["-d"]).is_some_and(|to| METADATA.contains(&to)) && value(&["--dport"]) == Some("80");
        let target = value(&["-j"]).filter(|target| matches!(*target, "DNAT" | "REDIRECT"));
        let (true, Some(_)) = (is_metadata, target) else {
            continue;
        };
        let to = value(&["--to-destination", "--to-ports"]).unwrap_or_default();
        let of = value(&["-i"]).map_or_else(String::new, |interface| format!(" for {interface}"));
        let mut removal: Vec<String> = [change, "-w", "-t", "nat", "-D"].map(str::to_owned).into();
        removal.extend(words.iter().skip(1).cloned());
        found.push(Leftover {
            what: format!(
                "rule of kube2iam or kiam ({change}){of}: the metadata service's connections go to {to}"
            ),
            removal,
        });
    }
    found
}

pub(super) fn examine(found: &Found) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    let mut findings: Vec<Finding> = found
        .leftovers
        .iter()
        .map(|one| {
            if found.running.is_empty() {
                Finding::warning(
                    CHECK,
                    format!("{}, and none of them is running here", one.what),
                    format!(
                        "{}\n(or all at once: metaproxy doctor --fix-leftovers)",
                        one.command()
                    ),
                )
            } else {
                Finding::warning(
                    CHECK,
                    format!("{}; {} is running here", one.what, found.running.join(" and ")),
                    format!("uninstall that first, or it comes back; then {}", one.command()),
                )
            }
        })
        .collect();
    if !found.unseen.is_empty() && findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!(
                "could not be looked for everywhere, as {} is not here; run it on the node itself for that",
                found.unseen.join(" and ")
            ),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "nothing of kube2iam, kiam or the EKS Pod Identity agent",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save v1.8.9
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181
-A PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -m comment --comment "kiam's own" -j DNAT --to-destination 10.0.0.1:8181
-A PREROUTING -d 169.254.169.254/32 ! -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181
-A PREROUTING ! -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181
-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.1:8181
-A PREROUTING -d 169.254.170.2/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:51679
-A POSTROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ACCEPT
COMMIT
"#;

    #[test]
    fn only_rules_that_send_the_metadata_service_elsewhere_are_found() {
        let found = rules(SAVED, "iptables-legacy");
        let commands: Vec<String> = found.iter().map(Leftover::command).collect();
        assert_eq!(
            commands,
            [
                "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT \
                 --to-destination 10.0.0.1:8181",
                "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 -i cali+ -p tcp -m tcp --dport 80 -m comment \
                 --comment \"kiam's own\" -j DNAT --to-destination 10.0.0.1:8181",
                "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 '!' -i eth0 -p tcp -m tcp --dport 80 -j DNAT \
                 --to-destination 10.0.0.1:8181",
            ]
        );
        assert!(
            found[0]
                .what
                .contains("for docker0: the metadata service's connections go to 10.0.0.1:8181")
        );
    }

    #[test]
    fn what_is_in_use_is_not_advised_to_be_removed_at_once() {
        let leftovers = rules(SAVED, "iptables-nft");
        let running = Found {
            leftovers: leftovers.clone(),
            running: vec!["kiam"],
            unseen: Vec::new(),
        };
        assert!(
            examine(&running)[0]
                .advice
                .as_ref()
                .unwrap()
                .starts_with("uninstall that first")
        );
        let gone = Found {
            leftovers,
            ..Found::default()
        };
        assert!(
            examine(&gone)[0]
                .advice
                .as_ref()
                .unwrap()
                .contains("--fix-leftovers")
        );
        assert_eq!(examine(&Found::default())[0].level, super::super::Level::Ok);
    }
}
