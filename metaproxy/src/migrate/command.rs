//! The command line of a container. A shell's script is read if it is one plain command; what a shell would have to run to
//! know is refused, as a flag that is overlooked could loosen what pods may have.

use super::variables::{Variable, Variables, reference};

const SHELLS: [&str; 6] = ["sh", "bash", "ash", "dash", "zsh", "ksh"];

/// The words of a command line, with its variables replaced.
///
/// # Errors
/// Why they are not known.
pub fn words(command: &[String], variables: &Variables, of: &str) -> Result<Vec<String>, String> {
    let words: Vec<String> = command.iter().map(|word| variables.expand(word)).collect();
    let skipped = words.iter().take_while(|word| program(word) == "busybox").count();
    match words.get(skipped) {
        Some(first) if SHELLS.contains(&program(first)) => {
            let script = script(&words[skipped + 1..]).ok_or_else(|| {
                format!("its command is `{first}` without a script of one line after -c, so its flags stand elsewhere")
            })?;
            of_script(script, variables, of)
        }
        _ => Ok(words),
    }
}

/// A program's name without its directory.
fn program(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

/// What stands after `-c`, which may stand among other letters (`-ec`).
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

fn of_script(script: &str, variables: &Variables, of: &str) -> Result<Vec<String>, String> {
    let plain = plain(script.trim(), variables)?;
    let mut words = shlex::split(&plain).ok_or("a quotation mark in its script is not closed")?;
    if words.first().is_some_and(|word| word == "exec") {
        words.remove(0);
    }
    match words.first().map(|first| program(first)) {
        Some(first) if is_of(first, of) => Ok(words),
        // Its value may be secret.
        Some(first) if first.contains('=') => Err(not_plain("a variable of its own")),
        first => Err(format!(
            "its script runs `{}`, not {of}",
            first.unwrap_or_default()
        )),
    }
}

/// Whether a program is one of these; kiam's were called `agent` and `server` before version 3.
fn is_of(program: &str, of: &str) -> bool {
    program.contains(of) || (of == "kiam" && matches!(program, "agent" | "server"))
}

/// A script with its variables replaced, if it is one command that a shell runs as it is written.
fn plain(script: &str, variables: &Variables) -> Result<String, String> {
    let mut out = String::with_capacity(script.len());
    let (mut rest, mut quote, mut before) = (script, None, ' ');
    while let Some(next) = rest.chars().next() {
        let width = next.len_utf8();
        let mut taken = width;
        match (next, quote) {
            ('\\', None | Some('"')) => {
                taken += rest[width..].chars().next().map_or(0, char::len_utf8);
                // At the end of a line it joins the next one.
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

/// The value of the variable at the beginning of a text, and what follows it. A value from elsewhere stays a `$(NAME)`.
fn variable<'a>(text: &'a str, variables: &Variables) -> Result<(String, &'a str), String> {
    let is_letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let (name, after) = if let Some(found) = reference(text) {
        // The kubelet has replaced those of `env`; what is left is the shell's.
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
    fn a_plain_command_is_read_as_the_shell_would(#[case] command: &[&str], #[case] words: &[&str]) {
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
    #[case::wrapped("dumb-init kube2iam", "its script runs `dumb-init`, not kube2iam")]
    fn a_script_that_only_a_shell_can_read_is_refused(#[case] script: &str, #[case] why: &str) {
        let error = read(&["sh", "-c", script]).unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn the_programs_of_the_first_kiam_are_its() {
        let command = ["sh", "-c", "exec /agent --iptables"].map(str::to_owned);
        let read = words(&command, &Variables::default(), "kiam").unwrap();
        assert_eq!(read, ["/agent", "--iptables"]);
    }

    #[rstest]
    #[case(&["sh", "/start.sh"])]
    #[case(&["bash", "-c"])]
    #[case(&["sh", "start.sh", "-c", "kube2iam"])]
    fn a_script_in_a_file_is_refused(#[case] command: &[&str]) {
        assert!(read(command).unwrap_err().contains("its flags stand elsewhere"));
    }
}
