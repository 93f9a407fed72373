//! Parses flags as Go programs do: `--name=value` or `--name value`, with one dash or two. A switch has no value, and
//! kingpin (which kiam uses) turns one off by `--no-name`.

use std::fmt;
use std::iter::Peekable;

use super::MigrateError;
use super::command::is_of;
use super::variables::Variables;

/// The grammar of a program's command line.
#[derive(Clone, Copy, Debug)]
pub struct Grammar {
    /// The program's name.
    pub program: &'static str,
    /// The subcommands.
    pub parts: &'static [&'static str],
    /// Flags that are not followed by a value of their own.
    pub switches: &'static [&'static str],
    /// Flags that decide what pods get. They may have only one value in an installation.
    pub single: &'static [&'static str],
    /// Whether kingpin parses it: `--no-` before a switch turns it off, and a word `@FILE` stands for the lines of a
    /// file.
    pub is_kingpin: bool,
}

impl Grammar {
    /// Returns the switch that `no-switch` turns off.
    fn turned_off(self, flag: &str) -> Option<&str> {
        let switch = flag.strip_prefix("no-").filter(|_| self.is_kingpin)?;
        self.switches.contains(&switch).then_some(switch)
    }
}

/// A parsed command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// The flags, in order.
    pub flags: Vec<Flag>,
    /// The subcommand, or the program that replaces one.
    pub part: Option<String>,
}

/// One flag.
#[derive(Clone, PartialEq, Eq)]
pub struct Flag {
    /// The name without dashes.
    pub name: String,
    /// The value: `true` for a switch, `false` for one that is turned off.
    pub value: String,
    /// The reason why the value is not known in full.
    pub missing: Option<String>,
}

/// Shows no value, because values may be secret.
impl fmt::Debug for Flag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl Flag {
    /// Shows the flag about as it was written, without secrets.
    pub fn shown(&self) -> String {
        format!("--{}={}", self.name, shown(&self.name, &self.value))
    }

    /// Reports whether a switch is on.
    pub fn is_on(&self) -> bool {
        matches!(self.value.to_ascii_lowercase().as_str(), "true" | "t" | "1")
    }

    /// Returns the value.
    ///
    /// # Errors
    /// If the manifest does not have it; the error says what is missing.
    pub fn known(&self) -> Result<&str, MigrateError> {
        match &self.missing {
            None => Ok(&self.value),
            Some(missing) => Err(MigrateError::Missing {
                flag: self.shown(),
                missing: missing.clone(),
            }),
        }
    }

    /// Refuses a switch that is neither on nor off (`strconv.ParseBool`), because its effect is not known.
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

/// The text shown instead of a secret.
pub const MASK: &str = "***";

/// Makes a value that may be shown, without secrets and without passwords in URLs.
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

/// Parses a command line. Every word is a flag, the value of a flag, the program, its subcommand, or an error,
/// because a word that is overlooked could give pods more access than before.
///
/// # Errors
/// If a word is none of these, a switch has a value other than on or off, or a flag lacks its value.
pub fn parse(words: &[String], variables: &Variables, grammar: Grammar) -> Result<Line, MigrateError> {
    let mut line = Line::default();
    let mut words = words.iter().map(String::as_str).enumerate().peekable();
    while let Some((index, word)) = words.next() {
        check_file(word, grammar)?;
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else {
            let name = word.rsplit('/').next().unwrap_or(word);
            if grammar.parts.contains(&name) && line.part.is_none() {
                line.part = Some(name.to_owned());
            } else if index > 0 || !is_of(name, grammar.program) {
                return Err(no_flag(word, variables, grammar));
            }
            continue;
        };
        // Words after two dashes are not flags.
        if flag.is_empty() && words.peek().is_none() {
            continue;
        }
        let name = flag.split_once('=').map_or(flag, |(name, _)| name);
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        {
            return Err(no_flag(word, variables, grammar));
        }
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None if grammar.switches.contains(&flag) => (flag, "true".to_owned()),
            None if let Some(switch) = grammar.turned_off(flag) => (switch, "false".to_owned()),
            None => (flag, next_value(flag, &mut words, grammar)?),
        };
        let flag = Flag {
            missing: variables.missing(&value).or_else(|| placeholder(&value)),
            name: name.to_owned(),
            value: value.trim_matches(['"', '\'']).to_owned(),
        };
        line.flags.push(flag.check(grammar)?);
    }
    Ok(line)
}

/// Returns the word after a flag that takes a value. A flag that is not known may be a switch.
fn next_value<'a>(
    flag: &str,
    words: &mut Peekable<impl Iterator<Item = (usize, &'a str)>>,
    grammar: Grammar,
) -> Result<String, MigrateError> {
    match words.next_if(|(_, next)| !next.starts_with("--")) {
        Some((_, value)) => {
            check_file(value, grammar)?;
            Ok(value.to_owned())
        }
        None if grammar.single.contains(&flag) => Err(MigrateError::Value {
            flag: format!("--{flag}"),
            problem: "it has no value; write one after it".to_owned(),
        }),
        None => Ok("true".to_owned()),
    }
}

/// Refuses a word in whose place kingpin reads a file (`ExpandArgsFromFile`).
fn check_file(word: &str, grammar: Grammar) -> Result<(), MigrateError> {
    if !grammar.is_kingpin || !word.starts_with('@') {
        return Ok(());
    }
    Err(MigrateError::Value {
        flag: word.to_owned(),
        problem: format!(
            "{} reads more flags from that file; write them in its place, or give all of them after --",
            grammar.program
        ),
    })
}

/// Describes a word that is not understood.
fn no_flag(word: &str, variables: &Variables, grammar: Grammar) -> MigrateError {
    let flag = shown("", word);
    if let Some(missing) = variables.missing(word).or_else(|| placeholder(word)) {
        return MigrateError::Missing { flag, missing };
    }
    let name = word
        .trim_start_matches('-')
        .split(['=', ' '])
        .next()
        .unwrap_or_default();
    let hint = if word.starts_with('-') && word.contains(char::is_whitespace) {
        "; each flag is a word of its own"
    } else if grammar.switches.contains(&name) || grammar.single.contains(&name) {
        "; a flag begins with two dashes"
    } else {
        ""
    };
    MigrateError::Value {
        flag,
        problem: format!(
            "it is neither a flag, nor the value of one, nor {} itself{hint}",
            grammar.program
        ),
    }
}

/// Finds a placeholder that another tool should have replaced.
pub fn placeholder(value: &str) -> Option<String> {
    let (open, close) = [("${", "}"), ("{{", "}}")]
        .into_iter()
        .find(|(open, _)| value.contains(open))?;
    let found = &value[value.find(open)?..];
    let end = found.find(close).map_or(found.len(), |end| end + close.len());
    Some(unfilled(&found[..end]))
}

/// Describes a placeholder.
pub fn unfilled(placeholder: &str) -> String {
    format!(
        "{placeholder} is a placeholder; fill it in with the tool that it is for (such as Terraform, Helm or envsubst), or by hand"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const PLAIN: Grammar = Grammar {
        program: "kube2iam",
        parts: &[],
        switches: &["debug", "v", "namespace-restrictions"],
        single: &["default-role"],
        is_kingpin: false,
    };

    const KINGPIN: Grammar = Grammar {
        program: "kiam",
        parts: &["agent", "server"],
        switches: &["iptables", "json-log"],
        single: &["role-base-arn"],
        is_kingpin: true,
    };

    fn line(words: &[&str], grammar: Grammar) -> Result<Line, MigrateError> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&words, &Variables::default(), grammar)
    }

    fn parsed(words: &[&str], grammar: Grammar) -> Result<Vec<String>, MigrateError> {
        Ok(line(words, grammar)?.flags.iter().map(Flag::shown).collect())
    }

    #[test]
    fn flags_are_read_as_go_programs_read_them() {
        let words = "/kube2iam --app-port 8182 --iptables=false --debug --host-ip=$(HOST_IP) -v --";
        assert_eq!(
            parsed(&words.split(' ').collect::<Vec<_>>(), PLAIN).unwrap(),
            [
                "--app-port=8182",
                "--iptables=false",
                "--debug=true",
                "--host-ip=$(HOST_IP)",
                "--v=true"
            ]
        );
    }

    #[rstest]
    #[case::argument(&["agent", "--iptables"], Some("agent"))]
    #[case::program_and_part(&["/kiam", "--json-log", "server"], Some("server"))]
    #[case::of_version_2(&["/server", "--session", "agent"], Some("server"))]
    #[case::none(&["--iptables"], None)]
    fn the_subcommand_is_found_among_the_words(#[case] words: &[&str], #[case] part: Option<&str>) {
        assert_eq!(line(words, KINGPIN).unwrap().part.as_deref(), part);
    }

    /// Checks words that could each be a flag that restricts pods.
    #[rstest]
    #[case::without_dashes(&["namespace-restrictions"], PLAIN, "a flag begins with two dashes")]
    #[case::another_word(&["kube2iam", "restricted"], PLAIN, "restricted: it is neither a flag")]
    #[case::behind_dashes(&["--debug", "--", "x"], PLAIN, "--: it is neither a flag")]
    #[case::two_in_one(&["--namespace-restrictions --default-role=x"], PLAIN, "each flag is a word of its own")]
    #[case::variable(&["$(RESTRICT)"], PLAIN, "RESTRICT is not in the manifest's `env`")]
    #[case::variable_after_a_switch(&["--debug", "$(RESTRICT)"], PLAIN, "RESTRICT is not in the manifest's `env`")]
    #[case::variable_as_a_name(&["--$(FLAG)=true"], PLAIN, "FLAG is not in the manifest's `env`")]
    #[case::terraform(&["${RESTRICT}"], PLAIN, "${RESTRICT} is a placeholder")]
    #[case::helm(&["{{ .Values.flag }}"], PLAIN, "{{ .Values.flag }} is a placeholder")]
    #[case::helm_as_a_flag(&["--{{ .Values.flag }}"], PLAIN, "{{ .Values.flag }} is a placeholder")]
    #[case::another_program(&["/entrypoint.sh"], PLAIN, "nor kube2iam itself")]
    #[case::without_a_value(&["--default-role", "--debug"], PLAIN, "it has no value")]
    #[case::a_file(&["server", "@/etc/kiam/flags"], KINGPIN, "reads more flags from that file")]
    #[case::a_file_as_a_value(&["server", "--level", "@/etc/level"], KINGPIN, "reads more flags from that file")]
    #[case::another_part(&["/kiam", "health"], KINGPIN, "health: it is neither a flag")]
    #[case::two_parts(&["/kiam", "agent", "server"], KINGPIN, "server: it is neither a flag")]
    fn an_unexpected_word_is_refused(#[case] words: &[&str], #[case] grammar: Grammar, #[case] why: &str) {
        let error = line(words, grammar).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_no_prefix_turns_off_only_switches_of_kiam() {
        let shown = |is_kingpin| -> Vec<String> {
            let grammar = Grammar {
                is_kingpin,
                ..KINGPIN
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
    fn only_secrets_are_masked(#[case] name: &str, #[case] value: &str, #[case] wanted: &str) {
        assert_eq!(shown(name, value), wanted);
    }

    #[rstest]
    #[case("--debug=yes", "neither true nor false")]
    #[case("--debug=$(DEBUG)", "DEBUG is not in the manifest's `env`")]
    fn a_switch_that_is_neither_on_nor_off_is_refused(#[case] word: &str, #[case] why: &str) {
        let error = parsed(&[word], PLAIN).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
