//! Flags as Go programs take them: `--name=value`, `--name value`, one dash or two; a switch stands alone.

/// Which flags are switches, and so are not followed by a value of their own.
#[derive(Clone, Copy, Debug)]
pub struct Grammar {
    pub switches: &'static [&'static str],
}

/// One flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// Without its dashes.
    pub name: String,
    /// `true` of a switch that stands alone.
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
}
