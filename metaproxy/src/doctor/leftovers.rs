//! What kube2iam, kiam and the EKS Pod Identity agent leave behind when they are gone: rules that send the metadata
//! service's connections to a port where nobody listens any more, and an interface.
//!
//! Rules are read and removed by iptables' own tools, as only they know how they wrote them.

use std::fs;
use std::process::Command;

use serde::Serialize;

use super::Finding;
use super::node::{processes, sees_all_processes};

/// Of the EKS Pod Identity agent (its configuration package names it).
const POD_IDENTITY_LINK: &str = "pod-id-link0";

/// Who makes rules, and who the interface, by the names of their processes.
const OF_RULES: [(&str, &str); 2] = [("kube2iam", "kube2iam"), ("kiam", "kiam")];
const OF_LINK: [(&str, &str); 1] = [("eks-pod-identity-agent", "the EKS Pod Identity agent")];

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
    /// Whether whoever made it is still there.
    pub used: Used,
}

/// Whether something is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Used {
    /// Nobody who makes such things runs here.
    No,
    /// By this one.
    By(&'static str),
    /// That can't be told from this container, which does not see the node's processes.
    Unknown,
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
pub struct Found {
    /// What was found.
    pub leftovers: Vec<Leftover>,
    /// What could not be looked at, and why not.
    pub unseen: Vec<String>,
}

fn used(by: &[(&str, &'static str)], processes: Option<&[String]>) -> Used {
    let Some(processes) = processes else {
        return Used::Unknown;
    };
    let is_there = |name: &str| processes.iter().any(|process| process == name);
    by.iter()
        .find(|(process, _)| is_there(process))
        .map_or(Used::No, |(_, name)| Used::By(name))
}

pub(super) fn find() -> Found {
    let mut found = Found::default();
    let processes = sees_all_processes().then(processes);
    let of_rules = used(&OF_RULES, processes.as_deref());
    for (save, change, names) in TOOLS {
        match names.map(fs::read_to_string) {
            // Not a single table, or no such family.
            Some(Ok(names)) if names.trim().is_empty() => continue,
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Some(Err(error)) => {
                found.unseen.push(format!("{change}: {error}"));
                continue;
            }
            Some(Ok(_)) | None => {}
        }
        match Command::new(save).args(["-t", "nat"]).output() {
            Ok(output) if output.status.success() => {
                found
                    .leftovers
                    .extend(rules(&String::from_utf8_lossy(&output.stdout), change, of_rules))
            }
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let first = said.lines().next().unwrap_or_default();
                found.unseen.push(format!("{save}: {first}"));
            }
            Err(error) => found.unseen.push(format!("{save}: {error}")),
        }
    }
    if nix::net::if_::if_nametoindex(POD_IDENTITY_LINK).is_ok() {
        found.leftovers.push(Leftover {
            what: format!("interface {POD_IDENTITY_LINK} of the EKS Pod Identity agent"),
            removal: ["ip", "link", "delete", POD_IDENTITY_LINK]
                .map(str::to_owned)
                .into(),
            used: used(&OF_LINK, processes.as_deref()),
        });
    }
    found
}

/// Of the nat table as `iptables-save` writes it, rules that send the metadata service's port 80 elsewhere.
fn rules(saved: &str, change: &str, used: Used) -> Vec<Leftover> {
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
            used,
        });
    }
    found
}

pub(super) fn examine(found: &Found) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    let mut findings: Vec<Finding> = found
        .leftovers
        .iter()
        .map(|one| match one.used {
            Used::No => Finding::warning(
                CHECK,
                format!("{}, and nobody who makes such things is running here", one.what),
                format!("{}\n(or all at once: metaproxy doctor --fix-leftovers)", one.command()),
            ),
            Used::By(daemon) => Finding::ok(
                CHECK,
                format!("{}, which {daemon} uses; when that is gone, this removes it: {}", one.what, one.command()),
            ),
            Used::Unknown => Finding::ok(
                CHECK,
                format!(
                    "{}; whether it is in use cannot be told from this container. Where it is not, this removes it: {}",
                    one.what,
                    one.command()
                ),
            ),
        })
        .collect();
    if !found.unseen.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!(
                "not everything could be looked at ({}); run it on the node itself, as root, for that",
                found.unseen.join("; ")
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
    use super::super::Level;
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
        let found = rules(SAVED, "iptables-legacy", Used::No);
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
    fn what_is_in_use_or_may_be_is_no_leftover() {
        let found = |used| Found {
            leftovers: rules(SAVED, "iptables-nft", used),
            unseen: Vec::new(),
        };
        let first = |found: &Found| examine(found).remove(0);
        assert_eq!(first(&found(Used::By("kiam"))).level, Level::Ok);
        assert_eq!(first(&found(Used::Unknown)).level, Level::Ok);
        let gone = first(&found(Used::No));
        assert!(gone.level == Level::Warning && gone.advice.as_ref().unwrap().contains("--fix-leftovers"));
        assert_eq!(first(&Found::default()).level, Level::Ok);
    }

    #[test]
    fn who_uses_them_is_told_by_the_processes_that_are_seen() {
        let processes = ["kiam", "kubelet"].map(str::to_owned);
        assert_eq!(used(&OF_RULES, Some(&processes)), Used::By("kiam"));
        assert_eq!(used(&OF_LINK, Some(&processes)), Used::No);
        assert_eq!(used(&OF_LINK, None), Used::Unknown);
    }
}
