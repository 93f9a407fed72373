//! Recognizes the rules of kube2iam and kiam. Both write the same rule, for IPv4 only (their `iptables` packages):
//! `-t nat -A PREROUTING -p tcp -d 169.254.169.254 --dport 80 -j DNAT --to-destination HOST:PORT -i INTERFACE`.

use std::net::SocketAddrV4;

const METADATA: [&str; 2] = ["169.254.169.254/32", "169.254.169.254"];

/// A rule of the form that kube2iam and kiam write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// The words of the rule as `iptables-save` writes it, without `-A`.
    pub words: Vec<String>,
    /// The interface of the packets.
    pub interface: String,
    /// The destination of the packets.
    pub target: SocketAddrV4,
}

/// Returns the rules of this form in a nat table as `iptables-save` writes it.
pub(super) fn of_their_form(saved: &str) -> Vec<Rule> {
    let appended = saved.lines().filter_map(|line| line.strip_prefix("-A "));
    appended.filter_map(|line| read(shlex::split(line)?)).collect()
}

/// Parses a rule. Returns `None` if a word is missing or added, because other software wrote such a rule.
fn read(words: Vec<String>) -> Option<Rule> {
    let (chain, mut rest) = words.split_first()?;
    let (mut interface, mut target) = (None, None);
    let (mut to_metadata, mut to_port, mut translates) = (false, false, false);
    while let Some((flag, after)) = rest.split_first() {
        rest = match (flag.as_str(), after) {
            // A negation of another flag, such as `! -d`, makes it a different rule.
            ("!", [flag, name, after @ ..]) if flag == "-i" => {
                interface = Some(format!("all but {name}"));
                after
            }
            ("-i", [name, after @ ..]) => {
                interface = Some(name.clone());
                after
            }
            ("-d", [to, after @ ..]) if METADATA.contains(&to.as_str()) => {
                to_metadata = true;
                after
            }
            ("--dport", [port, after @ ..]) if port == "80" => {
                to_port = true;
                after
            }
            ("-j", [verdict, after @ ..]) if verdict == "DNAT" => {
                translates = true;
                after
            }
            ("--to-destination", [to, after @ ..]) => {
                target = to.parse().ok();
                after
            }
            ("-p" | "-m", [tcp, after @ ..]) if tcp == "tcp" => after,
            _ => return None,
        };
    }
    let is_theirs = chain == "PREROUTING" && to_metadata && to_port && translates;
    // The daemons write an address of the node that pods can reach.
    let target = target.filter(|to: &SocketAddrV4| is_theirs && !to.ip().is_loopback())?;
    let interface = interface?;
    Some(Rule {
        words,
        interface,
        target,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const END: &str = "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181";

    #[rstest]
    #[case("-i docker0", "docker0")]
    #[case("-i cali+", "cali+")]
    #[case("! -i eth0", "all but eth0")]
    fn rules_of_kube2iam_and_kiam_are_recognized_by_their_words(#[case] of: &str, #[case] interface: &str) {
        let line = format!("-A PREROUTING -d 169.254.169.254/32 {of} {END}");
        let found = of_their_form(&format!("*nat\n:PREROUTING ACCEPT [0:0]\n{line}\nCOMMIT\n"));
        assert_eq!(found.len(), 1, "{line}");
        assert_eq!(found[0].interface, interface);
        assert_eq!(found[0].target.to_string(), "10.0.0.1:8181");
        assert_eq!(format!("-A {}", found[0].words.join(" ")), line);
    }

    #[rstest]
    #[case::redirect(
        "PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8181"
    )]
    #[case::another_chain(
        "OUTPUT -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::chain_of_their_own(
        "THEIRS -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::no_interface(
        "PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::loopback(
        "PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 127.0.0.1:8000"
    )]
    #[case::another_port(
        "PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::another_address(
        "PREROUTING -d 169.254.170.2/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::all_but_the_address(
        "PREROUTING ! -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::of_some_sources(
        "PREROUTING -s 10.0.0.0/8 -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::with_a_comment(
        "PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m comment --comment x -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181"
    )]
    #[case::to_several(
        "PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1-10.0.0.2:8181"
    )]
    #[case::no_translation("PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport 80 -j ACCEPT")]
    #[case::cut_off("PREROUTING -d 169.254.169.254/32 -i docker0 -p tcp -m tcp --dport")]
    fn other_rules_about_the_metadata_service_belong_to_other_software(#[case] rule: &str) {
        assert_eq!(of_their_form(&format!("-A {rule}")), []);
    }
}
