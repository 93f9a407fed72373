//! Checks of commands by the program that they call: by its parser, its help, or a run that changes nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::error::ErrorKind;
use metaproxy::cli::{Cli, Command as Verb, UsageError};

use super::text::{commands_of, substitutions};

/// Programs of other projects. Only those arguments are checked that name files of this repository.
const OTHERS: [&str; 14] = [
    "aws",
    "cp",
    "ctr",
    "docker",
    "grep",
    "head",
    "install",
    "kind",
    "kubeadm",
    "podman",
    "rm",
    "skopeo",
    "systemctl",
    "pgrep",
];

/// Programs that are called in substitutions.
const SMALL: [&str; 4] = ["hostname", "uname", "dpkg", "pidof"];

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the path of helm or kubectl. Returns `None` if `cargo xtask setup` was not run, which is a failure under
/// CI.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = root().join("target/kubernetes").join(name);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    eprintln!(
        "not checked by {name}: {} is missing (cargo xtask setup)",
        path.display()
    );
    None
}

/// Checks each command of a line that users type.
pub fn check_line(place: &str, line: &str) {
    for words in commands_of(line) {
        check(&format!("{place}: {line}"), &words, true);
    }
}

/// Checks a command within a text. Such a command may lack required arguments.
pub fn check_mention(place: &str, mention: &str) {
    // `live|ready` stands for two commands.
    let most = mention
        .split(' ')
        .map(|word| word.split('|').count())
        .max()
        .unwrap_or(1);
    for turn in 0..most {
        let pick = |word: &str| {
            let parts: Vec<&str> = word.split('|').collect();
            let is_choice = parts.len() > 1 && parts.iter().all(|part| !part.is_empty());
            if is_choice {
                parts[turn.min(parts.len() - 1)]
            } else {
                word
            }
            .to_owned()
        };
        let line: Vec<String> = mention.split(' ').map(pick).collect();
        for words in commands_of(&line.join(" ")) {
            check(&format!("{place}: {mention}"), &words, false);
        }
    }
}

fn check(place: &str, words: &[String], whole: bool) {
    for word in words {
        for inner in substitutions(word) {
            check_line(place, inner);
        }
    }
    let is_before = |word: &&String| {
        let is_variable = word.split_once('=').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
        is_variable || matches!(word.as_str(), "sudo" | "-E" | "do" | "…")
    };
    let words: Vec<&str> = words.iter().skip_while(is_before).map(String::as_str).collect();
    let Some((program, rest)) = words.split_first() else {
        return;
    };
    files_exist(place, rest);
    match program.rsplit('/').next().unwrap_or_default() {
        "metaproxy" => metaproxy(place, rest, whole),
        // `/proc/PID/exe` is the agent's binary, named by its process.
        "exe" if program.starts_with("/proc/") => metaproxy(place, rest, whole),
        "kubectl" | "oc" => kubectl(place, program, rest, whole),
        "helm" => helm(place, rest, whole),
        "cargo" => cargo(place, rest),
        // A loop's list was checked as a substitution. `done` ends the loop, and `>` is followed by a file that is
        // written.
        "for" | "done" | ">" => {}
        other if OTHERS.contains(&other) || SMALL.contains(&other) => {}
        other => panic!("{place}: nothing here knows how to check `{other}`"),
    }
}

fn files_exist(place: &str, words: &[&str]) {
    for word in words.iter().filter(|word| word.starts_with("deploy/")) {
        assert!(root().join(word).exists(), "{place}: there is no {word}");
    }
}

fn metaproxy(place: &str, words: &[&str], whole: bool) {
    // Substitutions of the shell mostly give a name.
    let words = words.iter().filter(|word| **word != "…");
    let words = words.map(|word| if word.contains("$(") { "node1" } else { word });
    let words: Vec<&str> = std::iter::once("metaproxy").chain(words).collect();
    if words.len() == 1 {
        return;
    }
    // A mention may omit a flag's value and required arguments.
    let ends_with_flag = words.last().is_some_and(|word| word.starts_with("--"));
    let is_cut = |kind| match kind {
        ErrorKind::MissingRequiredArgument => true,
        ErrorKind::InvalidValue => ends_with_flag,
        _ => false,
    };
    let verb = match Cli::from_words(&words) {
        Ok(cli) => cli.command,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => return,
        Err(error) if !whole && is_cut(error.kind()) => return,
        Err(error) => panic!("{place}: {error}"),
    };
    if !whole {
        return;
    }
    let checked = match verb {
        Verb::Run(args) => args.settings().map(drop),
        Verb::Guard(args) => args.settings().map(drop),
        Verb::Doctor(args) => args.examination().map(drop),
        Verb::Explain(args) => args.pod().map(drop),
        _ => Ok(()),
    };
    match checked {
        // The reader has a cluster, so the missing source of pods is not an error here.
        Ok(()) | Err(UsageError::NoSource) => {}
        Err(error) => panic!("{place}: {error}"),
    }
}

fn help(program: &Path, words: &[&str]) -> Output {
    Command::new(program)
        .args(words)
        .arg("--help")
        .current_dir(root())
        .output()
        .unwrap()
}

/// Asserts that the help contains every flag.
fn flags_are_known(place: &str, words: &[&str], help: &str) {
    let is_flag = |word: &&&str| word.starts_with('-') && word.len() > 1;
    for flag in words.iter().filter(is_flag) {
        let name = flag.split('=').next().unwrap_or_default();
        let is_there = help.match_indices(name).any(|(start, _)| {
            !help[start + name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-')
        });
        assert!(is_there, "{place}: no {name} in the help");
    }
}

fn kubectl(place: &str, program: &str, words: &[&str], whole: bool) {
    let (own, inner) = match words.iter().position(|word| *word == "--") {
        Some(end) => (&words[..end], &words[end + 1..]),
        None => (words, &[][..]),
    };
    let is_ours = |word: &&str| word.ends_with("/metaproxy") && word.starts_with('/');
    if inner.first().is_some_and(is_ours) {
        metaproxy(place, &inner[1..], whole);
    }
    // The word after a flag that precedes the verb is the flag's value.
    let mut rest = own.iter().copied();
    let mut verb = None;
    while let Some(word) = rest.next() {
        match word {
            "-n" | "--namespace" => drop(rest.next()),
            word if word.starts_with('-') => {}
            word => {
                verb = Some(word);
                break;
            }
        }
    }
    let verb = verb.unwrap_or_else(|| panic!("{place}: {program} does what?"));
    if program == "oc" {
        return;
    }
    let Some(path) = tool("kubectl") else { return };
    let output = help(&path, &[verb]);
    assert!(output.status.success(), "{place}: kubectl has no `{verb}`");
    let all = Command::new(&path).arg("options").output().unwrap();
    let text = [output.stdout, all.stdout].concat();
    flags_are_known(place, own, &String::from_utf8(text).unwrap());
}

fn helm(place: &str, words: &[&str], whole: bool) {
    let Some(path) = tool("helm") else { return };
    let Some((verb, rest)) = words.split_first() else {
        return;
    };
    let output = help(&path, &[verb]);
    assert!(output.status.success(), "{place}: helm has no `{verb}`");
    flags_are_known(place, rest, &String::from_utf8(output.stdout).unwrap());
    if !whole || !["install", "upgrade", "template"].contains(verb) {
        return;
    }
    // The chart is rendered with values such as a reader might have.
    let dir = tempfile::tempdir().unwrap();
    let values = dir.path().join("values.yaml");
    std::fs::write(
        &values,
        "namespacePolicy: required\nwebIdentity: { enabled: true }\nstartupTaint: a/b\n",
    )
    .unwrap();
    let own = |word: &&str| match *word {
        "values.yaml" => values.display().to_string(),
        word => word.replace('…', "registry.example.com/metaproxy"),
    };
    let output = Command::new(&path)
        .arg("template")
        .args(rest.iter().map(own))
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && !output.stdout.is_empty(),
        "{place}: {said}"
    );
}

fn cargo(place: &str, words: &[&str]) {
    let ["xtask", verb, rest @ ..] = words else {
        let known = ["bench", "build", "check", "fmt", "install", "test"];
        assert!(words.first().is_some_and(|verb| known.contains(verb)), "{place}");
        return;
    };
    let xtask = Path::new(env!("CARGO_BIN_EXE_metaproxy")).with_file_name("xtask");
    assert!(
        xtask.exists(),
        "{} is missing: run `cargo build --workspace`",
        xtask.display()
    );
    let output = help(&xtask, &[verb]);
    assert!(output.status.success(), "{place}: cargo xtask has no `{verb}`");
    flags_are_known(place, rest, &String::from_utf8(output.stdout).unwrap());
}
