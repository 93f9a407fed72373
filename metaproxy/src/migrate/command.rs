//! Reads the command line of a container. A shell script is read if it is one plain command. A script that a shell
//! would have to run is refused, because a flag that is overlooked could give pods more access than before.

use super::variables::{Variable, Variables, reference};
use super::words::placeholder;

const SHELLS: [&str; 6] = ["sh", "bash", "ash", "dash", "zsh", "ksh"];

/// Programs that start another program and leave its words as they are.
const WRAPPERS: [&str; 8] = [
    "catatonit",
    "dumb-init",
    "env",
    "exec",
    "gosu",
    "setsid",
    "su-exec",
    "tini",
];

/// The maximum depth to which wrappers and shells are nested.
const MAX_DEPTH: usize = 8;

/// Returns the words of a command line from its program on, with its variables replaced. If it begins with a flag,
/// the image names the program.
///
/// # Errors
/// If the words cannot be known; the error says why.
pub fn words(command: &[String], variables: &Variables, of: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = command.iter().map(|word| variables.expand(word)).collect();
    match words.first() {
        Some(first) if !first.starts_with(['-', '@']) => unwrapped(words, variables, of, MAX_DEPTH),
        _ => Ok(words),
    }
}

/// Reports whether the command line names one of the programs, as far as it can be read.
pub fn names_program(command: &[String], variables: &Variables, of: &str) -> bool {
    let words = words(command, variables, of);
    words.is_ok_and(|words| words.first().is_some_and(|first| is_of(program(first), of)))
}

/// Removes the programs that only start another one from a command line.
fn unwrapped(
    mut words: Vec<String>,
    variables: &Variables,
    of: &str,
    depth: usize,
) -> Result<Vec<String>, String> {
    let Some(first) = words.first() else {
        return Err("it starts no program".to_owned());
    };
    if let Some(why) = variables.missing(first).or_else(|| placeholder(first)) {
        return Err(why);
    }
    let called = program(first).to_owned();
    if is_of(&called, of) {
        return Ok(words);
    }
    let depth = depth
        .checked_sub(1)
        .ok_or("too many programs in it start one another")?;
    if SHELLS.contains(&called.as_str()) {
        let script = script(&words[1..]).ok_or_else(|| {
            format!(
                "its command is `{first}` without a script of one line after -c, so its flags are not in the manifest"
            )
        })?;
        return unwrapped(of_script(script, variables)?, variables, of, depth);
    }
    if called == "busybox" {
        words.remove(0);
        return unwrapped(words, variables, of, depth);
    }
    if !WRAPPERS.contains(&called.as_str()) {
        // Only the name before the equals sign is shown, because the variable's value may be secret.
        return Err(if first.contains('=') {
            not_plain("a variable of its own")
        } else {
            format!("it runs `{called}`, which is not {of}, so its flags may be elsewhere")
        });
    }
    let behind = behind_wrapper(&called, &words[1..])?;
    unwrapped(words.split_off(1 + behind), variables, of, depth)
}

/// Counts the words of a wrapper before the program that it starts.
///
/// # Errors
/// If an option may take a value, or change what is started.
fn behind_wrapper(wrapper: &str, words: &[String]) -> Result<usize, String> {
    const SWITCHES: [&str; 6] = ["-s", "-g", "-v", "-w", "--single-child", "--verbose"];
    let options = words
        .iter()
        .take_while(|word| word.starts_with('-') && *word != "--");
    for option in options.clone() {
        if wrapper == "env" || wrapper == "exec" || !SWITCHES.contains(&option.as_str()) {
            return Err(format!(
                "it runs `{wrapper}` with the option `{option}`, which this program does not know"
            ));
        }
    }
    let mut count = options.count();
    count += usize::from(words.get(count).is_some_and(|word| word == "--"));
    // The first word without a dash is the user.
    count += usize::from(matches!(wrapper, "gosu" | "su-exec") && count < words.len());
    Ok(count)
}

/// Returns a program's name without its directory.
fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// Returns the script after `-c`, which may be one of several letters (`-ec`).
fn script(words: &[String]) -> Option<&str> {
    let at = words
        .iter()
        .position(|word| word.starts_with('-') && !word.starts_with("--") && word.ends_with('c'))?;
    let before = &words[..at];
    before
        .iter()
        .all(|word| word.starts_with('-'))
        .then(|| words.get(at + 1).map(String::as_str))?
}

fn of_script(script: &str, variables: &Variables) -> Result<Vec<String>, String> {
    let plain = plain(script.trim(), variables)?;
    shlex::split(&plain).ok_or_else(|| "a quotation mark in its script is not closed".to_owned())
}

/// Reports whether a program is one of the programs of the software `of`. kiam's programs were called `agent` and
/// `server` before version 3. The file of a release has the platform after the name. A script whose name contains it
/// (`kube2iam-start.sh`) is another program.
pub(super) fn is_of(program: &str, of: &str) -> bool {
    let behind = program.strip_prefix(of);
    behind.is_some_and(|rest| rest.is_empty() || rest.starts_with("-linux") || rest.starts_with("_linux"))
        || (of == "kiam" && matches!(program, "agent" | "server"))
}

/// Splits a script into words and replaces its variables, if it is one command that a shell runs as it is written.
fn plain(script: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(script.len());
    let (mut rest, mut quote, mut before) = (script, None, ' ');
    while let Some(next) = rest.chars().next() {
        let width = next.len_utf8();
        let mut taken = width;
        match (next, quote) {
            ('\\', None | Some('"')) => {
                taken += rest[width..].chars().next().map_or(0, char::len_utf8);
                // A backslash at the end of a line joins the next line.
                if !rest[..taken].ends_with('\n') {
                    out.push_str(&rest[..taken]);
                }
            }
            ('\'' | '"', None) => {
                quote = Some(next);
                out.push(next);
            }
            (_, Some(mark)) if next == mark => {
                quote = None;
                out.push(next);
            }
            ('$', None | Some('"')) => {
                let (value, after) = variable(rest, variables)?;
                taken = rest.len() - after.len();
                out.push_str(&value);
            }
            ('`', None | Some('"')) => return Err(not_plain("a command within the command")),
            ('\n' | ';' | '&' | '|', None) => return Err(not_plain("more than one command")),
            ('<' | '>', None) => return Err(not_plain("a redirection")),
            ('(' | ')' | '*' | '?' | '[' | ']' | '{' | '}' | '~', None) => {
                return Err(not_plain(&format!("an unquoted `{next}`")));
            }
            ('#', None) if before.is_whitespace() => return Err(not_plain("a comment")),
            _ => out.push(next),
        }
        before = next;
        rest = &rest[taken..];
    }
    Ok(out)
}

/// Returns the value of the variable at the beginning of a text, and the text after it. A value that the manifest
/// does not have stays a `$(NAME)`.
fn variable<'a>(text: &'a str, variables: &Variables) -> Result<(String, &'a str), String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, after) = if let Some(found) = reference(text) {
        // The kubelet has replaced the references to `env`, so the shell gets the others.
        if variables.get(found.0).is_none() {
            return Err(not_plain("a command within the command"));
        }
        found
    } else if let Some(found) = text.strip_prefix("${").and_then(|text| text.split_once('}')) {
        found
    } else {
        let text = &text[1..];
        text.split_at(text.find(|c| !is_letter(c)).unwrap_or(text.len()))
    };
    if name.is_empty() || !name.chars().all(is_letter) {
        return Err(not_plain("an expansion"));
    }
    match variables.get(name) {
        Some(Variable::Known(value)) if value.chars().all(|c| is_letter(c) || "-./:,=@%+".contains(c)) => {
            Ok((value.clone(), after))
        }
        Some(Variable::Known(_)) => Err(format!(
            "its script uses ${name}, whose value a shell would take apart"
        )),
        Some(Variable::Elsewhere(_)) => Ok((format!("$({name})"), after)),
        None => Err(format!(
            "its script uses ${name}, which is not in the manifest's `env`"
        )),
    }
}

fn not_plain(what: &str) -> String {
    format!("its command is a shell script with {what}, which only a shell can read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn read(command: &[&str]) -> Result<Vec<String>, String> {
        let variables = Variables::of(&json!({ "env": [
            { "name": "ROLE", "value": "app/reader" },
            { "name": "WORDS", "value": "a b" },
            { "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
        ] }));
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        words(&command, &variables, "kube2iam")
    }

    #[rstest]
    #[case::tini(&["/sbin/tini", "-g", "--", "kube2iam", "--verbose"], &["kube2iam", "--verbose"])]
    #[case::tini_and_a_shell(
        &["tini", "--", "sh", "-c", "exec kube2iam --namespace-restrictions"], &["kube2iam", "--namespace-restrictions"]
    )]
    #[case::env_and_a_shell(&["/usr/bin/env", "sh", "-c", "kube2iam --debug"], &["kube2iam", "--debug"])]
    #[case::a_user(&["su-exec", "nobody:nobody", "kube2iam", "--debug"], &["kube2iam", "--debug"])]
    #[case::in_a_script(&["sh", "-c", "exec dumb-init kube2iam --debug"], &["kube2iam", "--debug"])]
    #[case::a_release(&["/kube2iam-linux-amd64", "--debug"], &["/kube2iam-linux-amd64", "--debug"])]
    #[case::of_the_image(&["--debug"], &["--debug"])]
    #[case::no_shell(&["/kube2iam", "--default-role=$(ROLE)"], &["/kube2iam", "--default-role=app/reader"])]
    #[case::exec(&["sh", "-c", "exec kube2iam --namespace-restrictions"], &["kube2iam", "--namespace-restrictions"])]
    #[case::letters(&["/bin/bash", "-euc", "/bin/kube2iam --verbose\n"], &["/bin/kube2iam", "--verbose"])]
    #[case::busybox(&["/bin/busybox", "sh", "-e", "-c", "kube2iam"], &["kube2iam"])]
    #[case::lines(&["sh", "-c", "exec kube2iam \\\n  --node=n \\\n  --verbose"], &["kube2iam", "--node=n", "--verbose"])]
    #[case::quotes(
        &["sh", "-c", r#"kube2iam '--namespace-key=a/$b' "--x=\"c d\"" --y=e\ f"#],
        &["kube2iam", "--namespace-key=a/$b", "--x=\"c d\"", "--y=e f"]
    )]
    #[case::variables(
        &["sh", "-c", r#"kube2iam --default-role="$ROLE" --host-ip=${HOST_IP} --iam-role-key=$(ROLE)"#],
        &["kube2iam", "--default-role=app/reader", "--host-ip=$(HOST_IP)", "--iam-role-key=app/reader"]
    )]
    fn a_plain_command_is_split_as_by_a_shell(#[case] command: &[&str], #[case] words: &[&str]) {
        assert_eq!(read(command).unwrap(), words);
    }

    #[rstest]
    #[case::two("sleep 5; kube2iam", "more than one command")]
    #[case::lines("set -e\nexec kube2iam", "more than one command")]
    #[case::and("iptables -F && kube2iam", "more than one command")]
    #[case::pipe("kube2iam | tee log", "more than one command")]
    #[case::background("kube2iam --debug &", "more than one command")]
    #[case::redirected("kube2iam > log", "a redirection")]
    #[case::substituted("kube2iam --node=$(hostname)", "a command within the command")]
    #[case::in_quotes("kube2iam \"--node=`hostname`\"", "a command within the command")]
    #[case::arguments("kube2iam \"$@\"", "an expansion")]
    #[case::default("kube2iam --node=${NODE:-n}", "an expansion")]
    #[case::a_variable("kube2iam --node=$NODE", "$NODE, which is not in the manifest's `env`")]
    #[case::apart("kube2iam --default-role=$WORDS", "a shell would take apart")]
    #[case::pattern("kube2iam --default-role=*", "an unquoted `*`")]
    #[case::comment("kube2iam # --namespace-restrictions", "a comment")]
    #[case::open("kube2iam 'x", "is not closed")]
    #[case::assigned("TOKEN=hidden kube2iam", "a variable of its own")]
    #[case::wrapped("nice -n 5 kube2iam", "it runs `nice`, which is not kube2iam")]
    fn a_script_that_needs_a_shell_is_refused(#[case] script: &str, #[case] why: &str) {
        let error = read(&["sh", "-c", script]).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn the_program_names_of_early_kiam_versions_are_recognized() {
        let command = ["sh", "-c", "exec /agent --iptables"].map(str::to_owned);
        let read = words(&command, &Variables::default(), "kiam").unwrap();
        assert_eq!(read, ["/agent", "--iptables"]);
    }

    #[rstest]
    #[case(&["sh", "/start.sh"])]
    #[case(&["bash", "-c"])]
    #[case(&["sh", "start.sh", "-c", "kube2iam"])]
    fn a_script_in_a_file_is_refused(#[case] command: &[&str]) {
        assert!(
            read(command)
                .unwrap_err()
                .contains("its flags are not in the manifest")
        );
    }

    /// Checks a command whose flags cannot be known.
    #[rstest]
    #[case::entrypoint(&["/entrypoint.sh"], "it runs `entrypoint.sh`, which is not kube2iam")]
    #[case::called_alike(&["/opt/kube2iam-start.sh"], "it runs `kube2iam-start.sh`, which is not kube2iam")]
    #[case::of_env(&["env", "-S", "kube2iam --debug"], "`env` with the option `-S`")]
    #[case::assigned(&["env", "TOKEN=hidden", "kube2iam"], "a variable of its own")]
    #[case::of_tini(&["tini", "-p", "SIGTERM", "--", "kube2iam"], "`tini` with the option `-p`")]
    #[case::nothing(&["tini", "--"], "it starts no program")]
    #[case::from_a_variable(&["$(NOWHERE)"], "NOWHERE is not in the manifest's `env`")]
    #[case::from_elsewhere(&["$(HOST_IP)", "--debug"], "HOST_IP comes from field status.podIP")]
    #[case::placeholder(&["{{ .Values.flag }}"], "{{ .Values.flag }} is a placeholder")]
    #[case::for_ever(&["env", "env", "env", "env", "env", "env", "env", "env", "env", "kube2iam"], "too many programs")]
    fn a_command_of_another_program_is_refused(#[case] command: &[&str], #[case] why: &str) {
        let error = read(command).unwrap_err();
        assert!(error.contains(why) && !error.contains("hidden"), "{error}");
    }
}
