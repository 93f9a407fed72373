//! Finds leftovers of kube2iam, kiam and the EKS Pod Identity agent on a node: rules that send connections for the
//! metadata service to a port without a listener, and an interface.
//!
//! Rules are read and removed with iptables' own tools, because only these know how iptables stores rules. A rule is
//! reported only if it is exactly as one of the three writes it. It is removed only if it seems unused, now and some
//! seconds later. It seems unused if the daemon does not run, none of the daemon's pods is on the node, and the
//! rule's port has no listener.

mod netlink;
mod rules;
mod tables;
mod usage;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use nix::ifaddrs::getifaddrs;

use self::rules::Rule;
use self::tables::BACKENDS;
use self::usage::NodeUsage;
use super::Finding;

/// The time between the two checks before anything is removed, because a daemon may be restarting.
const RECHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The interface of the EKS Pod Identity agent, which has the addresses below (the agent's configuration package).
const POD_IDENTITY_LINK: &str = "pod-id-link0";
const POD_IDENTITY_IPS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// A rule or interface that other software may have left behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The description.
    pub what: String,
    /// The program that removes it, with its arguments.
    pub removal: Vec<String>,
    /// Whether it is still in use.
    pub used: Usage,
}

/// Whether a leftover is in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The software that makes it is not here, and its port has no listener.
    No,
    /// The software that makes it is here.
    By(&'static str),
    /// A process listens at its port.
    PortOf(String),
    /// Unknown, because this container does not see the node's processes.
    Unknown,
}

impl Leftover {
    /// Returns the command that removes it, quoted for a shell.
    pub fn command(&self) -> String {
        let words = self.removal.iter().map(String::as_str);
        shlex::try_join(words).unwrap_or_else(|_| self.removal.join(" "))
    }

    /// Returns the reason why it must be kept; `None` if it can be removed.
    pub fn reason_to_keep(&self) -> Option<String> {
        match &self.used {
            Usage::No => None,
            Usage::By(daemon) => Some(format!("{daemon} uses it; uninstall that first")),
            Usage::PortOf(listener) => Some(format!(
                "{listener} listens at its target; if that has nothing to do with it, remove it by hand: {}",
                self.command()
            )),
            Usage::Unknown => Some(
                "whether it is in use cannot be determined in this container; run this on the node itself"
                    .to_owned(),
            ),
        }
    }

    /// Removes it.
    ///
    /// # Errors If the program fails. The error contains the program's standard error.
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

/// The leftovers of a node, and the tables that could not be examined.
#[derive(Debug, Default)]
pub struct NodeLeftovers {
    /// The leftovers.
    pub leftovers: Vec<Leftover>,
    /// The tables that could not be examined, each with the reason.
    pub not_examined: Vec<String>,
}

impl NodeLeftovers {
    /// Examines the node again after `RECHECK_INTERVAL`. A leftover that is in use in either examination counts as
    /// used.
    pub fn confirm(self) -> Self {
        std::thread::sleep(RECHECK_INTERVAL);
        self.confirmed_by(find())
    }

    fn confirmed_by(mut self, mut later: Self) -> Self {
        for one in &mut later.leftovers {
            // Each leftover of the first examination confirms at most one of the second.
            let before = self
                .leftovers
                .iter()
                .position(|before| before.removal == one.removal);
            let before = before.map(|index| self.leftovers.swap_remove(index).used);
            if one.used == Usage::No {
                // A leftover that was created in between is in use.
                one.used = before.unwrap_or(Usage::PortOf("a program that has just made it".to_owned()));
            }
        }
        later
    }
}

pub(super) fn find() -> NodeLeftovers {
    let mut found = NodeLeftovers::default();
    let usage = NodeUsage::of_this_node();
    for backend in &BACKENDS {
        match backend.nat() {
            Ok(Some((change, saved))) => found.leftovers.extend(
                rules::of_their_form(&saved)
                    .into_iter()
                    .map(|rule| leftover(rule, change, &usage)),
            ),
            Ok(None) => {}
            Err(why) => found.not_examined.push(format!("{}: {why}", backend.name)),
        }
    }
    if has_pod_identity_link() {
        found.leftovers.push(Leftover {
            what: format!("interface {POD_IDENTITY_LINK} of the EKS Pod Identity agent"),
            removal: ["ip", "link", "delete", POD_IDENTITY_LINK]
                .map(str::to_owned)
                .into(),
            used: usage.of_link(),
        });
    }
    found
}

fn leftover(rule: Rule, change: &str, usage: &NodeUsage) -> Leftover {
    let mut removal: Vec<String> = [change, "-w", "-t", "nat", "-D"].map(str::to_owned).into();
    removal.extend(rule.words);
    Leftover {
        what: format!(
            "rule of kube2iam or kiam ({change}) for {}: the metadata service's connections go to {}",
            rule.interface, rule.target
        ),
        removal,
        used: usage.of_rule(rule.target),
    }
}

/// Looks for the interface by name and address, because other software may use the name.
fn has_pod_identity_link() -> bool {
    let addresses = getifaddrs().into_iter().flatten();
    addresses
        .filter(|one| one.interface_name == POD_IDENTITY_LINK)
        .filter_map(|one| {
            let address = one.address?;
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .any(|address| POD_IDENTITY_IPS.contains(&address))
}

/// The advice to run the command on the node, which has the tools.
pub(crate) const RUN_ON_THE_NODE_ADVICE: &str = "install iptables, or run it as root on the node itself; if only the agent's container \
     has this program, the node runs it as `/proc/$(pidof -s metaproxy)/exe doctor`";

pub(super) fn examine(found: &NodeLeftovers) -> Vec<Finding> {
    const CHECK: &str = "leftovers";
    let mut findings: Vec<Finding> = found.leftovers.iter().map(|one| finding(CHECK, one)).collect();
    if !found.not_examined.is_empty() {
        let says = format!(
            "not everything could be looked at ({})",
            found.not_examined.join("; ")
        );
        findings.push(Finding {
            advice: Some(RUN_ON_THE_NODE_ADVICE.to_owned()),
            ..Finding::ok(CHECK, says)
        });
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            "nothing of kube2iam, kiam or the EKS Pod Identity agent",
        ));
    }
    findings
}

fn finding(check: &'static str, one: &Leftover) -> Finding {
    let (what, command) = (&one.what, one.command());
    match &one.used {
        Usage::No => Finding::warning(
            check,
            format!("{what}, and the software that makes it is not here"),
            format!("{command}\n(or all at once: metaproxy doctor --fix-leftovers)"),
        ),
        Usage::By(daemon) => Finding::ok(
            check,
            format!("{what}, which {daemon} uses; when that is gone, this removes it: {command}"),
        ),
        Usage::PortOf(listener) => Finding::warning(
            check,
            format!("{what}, where {listener} listens, which seems to be neither"),
            format!("if that has nothing to do with it, this removes it: {command}"),
        ),
        Usage::Unknown => Finding::ok(
            check,
            format!(
                "{what}; whether it is in use cannot be determined in this container. If it is not, this removes it: {command}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use rstest::rstest;

    const SAVED: &str = "-A PREROUTING -d 169.254.169.254/32 ! -i eth0 -p tcp -m tcp --dport 80 -j DNAT --to-destination \
                         10.0.0.1:8181\n";

    fn rule(used: Usage) -> Leftover {
        let rule = rules::of_their_form(SAVED).remove(0);
        Leftover {
            used,
            ..leftover(rule, "iptables-legacy", &NodeUsage::default())
        }
    }

    #[test]
    fn the_command_that_removes_a_rule_is_quoted_for_a_shell() {
        let rule = rule(Usage::No);
        assert_eq!(
            rule.command(),
            "iptables-legacy -w -t nat -D PREROUTING -d 169.254.169.254/32 '!' -i eth0 -p tcp -m tcp --dport 80 -j DNAT \
             --to-destination 10.0.0.1:8181"
        );
        assert_eq!(
            rule.what,
            "rule of kube2iam or kiam (iptables-legacy) for all but eth0: the metadata service's connections go to 10.0.0.1:8181"
        );
    }

    #[rstest]
    #[case(Usage::No, Level::Warning, true)]
    #[case(Usage::By("kiam"), Level::Ok, false)]
    #[case(Usage::PortOf("gunicorn (pid 7)".to_owned()), Level::Warning, false)]
    #[case(Usage::Unknown, Level::Ok, false)]
    fn a_leftover_that_is_or_may_be_in_use_is_kept(
        #[case] used: Usage,
        #[case] level: Level,
        #[case] is_removed: bool,
    ) {
        let rule = rule(used);
        assert_eq!(rule.reason_to_keep().is_none(), is_removed);
        let finding = examine(&NodeLeftovers {
            leftovers: vec![rule],
            not_examined: Vec::new(),
        })
        .remove(0);
        assert_eq!(finding.level, level);
        assert_eq!(
            finding
                .advice
                .is_some_and(|advice| advice.contains("--fix-leftovers")),
            is_removed
        );
    }

    #[rstest]
    #[case(&[Usage::No], &[Usage::No], &[true])]
    #[case(&[Usage::By("kiam")], &[Usage::No], &[false])]
    #[case(&[Usage::No], &[Usage::By("kiam")], &[false])]
    #[case(&[], &[Usage::No], &[false])]
    #[case(&[Usage::No, Usage::No], &[Usage::No, Usage::No], &[true, true])]
    #[case(&[Usage::No], &[], &[])]
    fn only_leftovers_that_are_unused_in_both_examinations_are_removed(
        #[case] first: &[Usage],
        #[case] second: &[Usage],
        #[case] removed: &[bool],
    ) {
        let found = |all: &[Usage]| NodeLeftovers {
            leftovers: all.iter().cloned().map(rule).collect(),
            not_examined: Vec::new(),
        };
        let confirmed = found(first).confirmed_by(found(second)).leftovers;
        let are_removed: Vec<bool> = confirmed
            .iter()
            .map(|one| one.reason_to_keep().is_none())
            .collect();
        assert_eq!(are_removed, removed);
    }

    #[test]
    fn a_clean_node_has_nothing_left() {
        assert_eq!(examine(&NodeLeftovers::default()).remove(0).level, Level::Ok);
    }
}
