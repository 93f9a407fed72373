//! Flags as Go programs take them: `--name=value`, `--name value`, one dash or two; a switch stands alone, and kingpin's
//! (kiam's) may be turned off by `--no-name`.

/// Which flags are switches, and so are not followed by a value of their own.
#[derive(Clone, Copy, Debug)]
pub struct Grammar {
    pub switches: &'static [&'static str],
    /// Whether `--no-` before a switch turns it off.
    pub has_negation: bool,
}

impl Grammar {
    /// The switch that `no-switch` turns off.
    fn turned_off(self, flag: &str) -> Option<&str> {
        let switch = flag.strip_prefix("no-").filter(|_| self.has_negation)?;
        self.switches.contains(&switch).then_some(switch)
    }
}

/// One flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Without its dashes.
    pub name: String,
    /// `true` of a switch that stands alone, `false` of one that is turned off.
    pub value: String,
}

impl Flag {
    /// As it was written, more or less.
    pub fn shown(&self) -> String {
        format!("--{}={}", self.name, self.value)
    }

    /// Of a switch, whether it is on.
    pub fn is_on(&self) -> bool {
        matches!(self.value.to_ascii_lowercase().as_str(), "true" | "t" | "1")
    }
}

/// The flags among these words; others (a program, a subcommand) are passed over.
pub fn parse(words: &[String], grammar: Grammar) -> Vec<Flag> {
    let mut flags = Vec::new();
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            continue;
        };
        if flag.is_empty() {
            continue;
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if grammar.switches.contains(&flag) => (flag, "true".to_owned()),
            None if let Some(switch) = grammar.turned_off(flag) => (switch, "false".to_owned()),
            None => {
                let value = words.next_if(|next| !next.starts_with("--"));
                (flag, value.unwrap_or("true").to_owned())
            }
        };
        flags.push(Flag {
            name: name.to_owned(),
            value: value.trim_matches(['"', '\'']).to_owned(),
        });
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_go_programs_read_them() {
        let words = "/kube2iam --app-port 8182 --iptables=false --debug --host-ip=$(HOST_IP) -v -- x";
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        let grammar = Grammar {
            switches: &["debug", "v"],
            has_negation: false,
        };
        let flags: Vec<String> = parse(&words, grammar).iter().map(Flag::shown).collect();
        assert_eq!(
            flags,
            [
                "--app-port=8182",
                "--iptables=false",
                "--debug=true",
                "--host-ip=$(HOST_IP)",
                "--v=true"
            ]
        );
    }
    #[test]
    fn a_switch_of_kiams_is_turned_off_by_no_before_it_and_nothing_else_is() {
        let words = ["--no-iptables", "--no-frills", "8", "--no-json-log=x"].map(str::to_owned);
        let shown = |has_negation| -> Vec<String> {
            let switches = &["iptables", "json-log"];
            let grammar = Grammar {
                switches,
                has_negation,
            };
            parse(&words, grammar).iter().map(Flag::shown).collect()
        };
        assert_eq!(
            shown(true),
            ["--iptables=false", "--no-frills=8", "--no-json-log=x"]
        );
        assert_eq!(shown(false)[0], "--no-iptables=true");
    }
}
