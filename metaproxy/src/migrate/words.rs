//! Flags as Go programs take them: `--name=value`, `--name value`, one dash or two; a switch stands alone, and kingpin's
//! (kiam's) may be turned off by `--no-name`.

use std::fmt;

use super::MigrateError;
use super::variables::Variables;

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
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// Without its dashes.
    pub name: String,
    /// `true` of a switch that stands alone, `false` of one that is turned off.
    pub value: String,
    /// Why the value is not known in full.
    pub missing: Option<String>,
}

/// Values may be secret.
impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Flag {
    /// As it was written, more or less, without secrets.
    pub fn shown(&self) -> String {
        format!("--{}={}", self.name, shown(&self.name, &self.value))
    }

    /// Of a switch, whether it is on.
    pub fn is_on(&self) -> bool {
        matches!(self.value.to_ascii_lowercase().as_str(), "true" | "t" | "1")
    }

    /// Its value, if the manifest has it.
    ///
    /// # Errors
    /// What is missing.
    pub fn known(&self) -> Result<&str, MigrateError> {
        match &self.missing {
            None => Ok(&self.value),
            Some(missing) => Err(MigrateError::Missing {
                flag: self.shown(),
                missing: missing.clone(),
            }),
        }
    }

    /// Refuses a switch that is neither on nor off (`strconv.ParseBool`): what it does is not known.
    fn check(self, grammar: Grammar) -> Result<Self, MigrateError> {
        const VALUES: [&str; 6] = ["true", "t", "1", "false", "f", "0"];
        let is_switch = grammar.switches.contains(&self.name.as_str());
        if is_switch && !VALUES.contains(&self.known()?.to_ascii_lowercase().as_str()) {
            return Err(MigrateError::Value {
                flag: self.shown(),
                problem: "it is neither true nor false".to_owned(),
            });
        }
        Ok(self)
    }
}

/// What stands in place of a secret.
pub const MASK: &str = "***";

/// A value as it may be shown: secrets, and passwords in URLs, are not.
pub fn shown(name: &str, value: &str) -> String {
    const SECRET: [&str; 6] = [
        "token",
        "secret",
        "password",
        "passwd",
        "credential",
        "access_key",
    ];
    let name = name.to_ascii_lowercase();
    if SECRET.iter().any(|part| name.contains(part)) {
        return MASK.to_owned();
    }
    let password = value
        .split_once("://")
        .and_then(|(scheme, rest)| Some((scheme, rest.split('/').next()?.rsplit_once('@')?.1, rest)));
    match password {
        Some((scheme, host, rest)) => {
            let path = rest
                .split_once('/')
                .map_or(String::new(), |(_, path)| format!("/{path}"));
            format!("{scheme}://{MASK}@{host}{path}")
        }
        None => value.to_owned(),
    }
}

/// The flags among these words; others (a program, a subcommand) are passed over.
///
/// # Errors
/// A switch whose value makes no sense.
pub fn parse(words: &[String], variables: &Variables, grammar: Grammar) -> Result<Vec<Flag>, MigrateError> {
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
        let flag = Flag {
            missing: variables.missing(&value).or_else(|| placeholder(&value)),
            name: name.to_owned(),
            value: value.trim_matches(['"', '\'']).to_owned(),
        };
        flags.push(flag.check(grammar)?);
    }
    Ok(flags)
}

/// What another tool should have replaced.
pub fn placeholder(value: &str) -> Option<String> {
    let (open, close) = [("${", "}"), ("{{", "}}")]
        .into_iter()
        .find(|(open, _)| value.contains(open))?;
    let found = &value[value.find(open)?..];
    let end = found.find(close).map_or(found.len(), |end| end + close.len());
    Some(unfilled(&found[..end]))
}

/// What is said of a placeholder.
pub fn unfilled(placeholder: &str) -> String {
    format!("{placeholder} is a placeholder that nothing has filled in (Terraform, Helm, envsubst, or you)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn parsed(words: &[&str], grammar: Grammar) -> Result<Vec<String>, MigrateError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let flags = parse(&words, &Variables::default(), grammar)?;
        Ok(flags.iter().map(Flag::shown).collect())
    }

    #[test]
    fn flags_are_read_as_go_programs_read_them() {
        let words = "/kube2iam --app-port 8182 --iptables=false --debug --host-ip=$(HOST_IP) -v -- x";
        let grammar = Grammar {
            switches: &["debug", "v"],
            has_negation: false,
        };
        assert_eq!(
            parsed(&words.split(' ').collect::<Vec<_>>(), grammar).unwrap(),
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
        let shown = |has_negation| -> Vec<String> {
            let switches = &["iptables", "json-log"];
            let grammar = Grammar {
                switches,
                has_negation,
            };
            parsed(&["--no-iptables", "--no-frills", "8", "--no-json-log=x"], grammar).unwrap()
        };
        assert_eq!(
            shown(true),
            ["--iptables=false", "--no-frills=8", "--no-json-log=x"]
        );
        assert_eq!(shown(false)[0], "--no-iptables=true");
    }

    #[rstest]
    #[case("api-token", "hidden", "***")]
    #[case("AWS_SECRET_ACCESS_KEY", "hidden", "***")]
    #[case("https_proxy", "http://me:hidden@proxy:3128/x", "http://***@proxy:3128/x")]
    #[case("api-server", "https://api:6443", "https://api:6443")]
    #[case("iam-role-key", "example.com/role", "example.com/role")]
    fn secrets_are_masked_and_nothing_else(#[case] name: &str, #[case] value: &str, #[case] wanted: &str) {
        assert_eq!(shown(name, value), wanted);
    }

    #[rstest]
    #[case("--debug=yes", "neither true nor false")]
    #[case("--debug=$(DEBUG)", "DEBUG is not in the manifest's `env`")]
    fn a_switch_that_is_neither_on_nor_off_is_refused(#[case] word: &str, #[case] why: &str) {
        let grammar = Grammar {
            switches: &["debug"],
            has_negation: false,
        };
        let error = parsed(&[word], grammar).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
