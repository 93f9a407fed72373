//! The tables of flags in `deploy/docs/configuration.md`. They are generated from the command line's definition and
//! from the chart.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory as _};
use metaproxy::cli::Cli;
use serde_json::Value;

use super::commands::root;
use super::generated::{check, row};
use super::read;

const DOCUMENT: &str = "deploy/docs/configuration.md";

/// Flags that the chart sets by a named template, each with the value on which it depends.
const BY_NAMED_TEMPLATE: [(&str, &str); 3] = [
    ("admin-address", "adminAddress"),
    ("guard-placement", "guard.placement"),
    ("token-policy", "webIdentity.admissionPolicy"),
];

/// Flags that the chart sets from a field of the pod.
const BY_FIELD: [&str; 1] = ["node-name"];

#[test]
fn the_tables_of_flags_are_current() {
    let agent = values_of_flags(&read(
        &root().join("deploy/helm/metaproxy/templates/daemonset.yaml"),
    ));
    let guard = values_of_flags(guard_container(&helpers()));
    check(DOCUMENT, "flags of run", &table(&command("run"), &agent));
    check(DOCUMENT, "flags of guard", &table(&command("guard"), &guard));
    check(DOCUMENT, "commands", &commands());
}

#[test]
fn the_chart_sets_flags_and_variables_that_exist_from_values_that_exist() {
    let values: Value =
        serde_yaml_ng::from_str(&read(&root().join("deploy/helm/metaproxy/values.yaml"))).unwrap();
    let agent = read(&root().join("deploy/helm/metaproxy/templates/daemonset.yaml"));
    let helpers = helpers();
    let mut found = 0;
    for (name, template) in [("run", agent.as_str()), ("guard", guard_container(&helpers))] {
        // `doctor` runs in the agent's container, and reads the same variables.
        let known: Vec<Command> = match name {
            "run" => vec![command("run"), command("doctor")],
            name => vec![command(name)],
        };
        for (flag, value) in values_of_flags(template) {
            let is_known = known.iter().flat_map(Command::get_arguments);
            assert!(
                is_known.filter_map(Arg::get_long).any(|long| long == flag),
                "the chart sets --{flag}, which metaproxy {name} does not take"
            );
            let pointer = format!("/{}", value.replace('.', "/"));
            let is_there = BY_FIELD.contains(&flag.as_str()) || values.pointer(&pointer).is_some();
            assert!(is_there, "--{flag}: values.yaml has no {value}");
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

fn command(name: &str) -> Command {
    let mut cli = Cli::command();
    cli.build();
    cli.find_subcommand(name).unwrap().clone()
}

fn helpers() -> String {
    read(&root().join("deploy/helm/metaproxy/templates/_helpers.tpl"))
}

/// Returns the arguments of the guard's container. The container's probes are left out, because they have other
/// flags.
fn guard_container(helpers: &str) -> &str {
    let (_, rest) = helpers
        .split_once("{{- define \"metaproxy.guardContainer\" -}}")
        .unwrap();
    rest.split_once("securityContext:").unwrap().0
}

/// Returns the chart's value for each flag: the one that the flag's line names, or else that of the `with` or `range`
/// around it.
fn values_of_flags(template: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut around = None;
    let mut lines = template.lines().peekable();
    while let Some(line) = lines.next() {
        if line.contains("{{- with ") || line.contains("{{- range ") {
            around = value_in(line);
        }
        let (flag, own) = if let Some((_, rest)) = line.split_once("printf \"--") {
            // The kubelet's probes call another command.
            if line.contains("command:") {
                continue;
            }
            (rest.split_once('=').unwrap().0.to_owned(), value_in(line))
        } else if let Some((_, name)) = line.split_once("- name: METAPROXY_") {
            let flag = name.to_lowercase().replace('_', "-");
            (flag, lines.peek().and_then(|line| value_in(line)))
        } else {
            continue;
        };
        let named = BY_NAMED_TEMPLATE.iter().find(|(name, _)| *name == flag);
        let value = match named {
            Some((_, value)) => Some((*value).to_owned()),
            None if BY_FIELD.contains(&flag.as_str()) => Some(String::new()),
            None => own.or_else(|| around.clone()),
        };
        let value = value.unwrap_or_else(|| panic!("no value of the chart decides about --{flag}"));
        values.insert(flag, value);
    }
    values
}

/// Returns the first value that a line of a template names.
fn value_in(line: &str) -> Option<String> {
    let (_, rest) = line.split_once(".Values.")?;
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

/// Returns tables of all flags of a command, one for each heading of its `--help`.
fn table(command: &Command, values: &BTreeMap<String, String>) -> String {
    let mut text = String::new();
    let mut headings: Vec<&str> = Vec::new();
    for arg in flags(command) {
        let heading = arg.get_help_heading().unwrap();
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        writeln!(text, "**{heading}**\n").unwrap();
        text += &row(["flag", "variable", "chart value", "default", "what it does"]);
        text += &row(["---"; 5]);
        for arg in flags(command).filter(|arg| arg.get_help_heading() == Some(heading)) {
            let long = arg.get_long().unwrap();
            let variable = arg.get_env().map(|name| format!("`{}`", name.display()));
            let value = values.get(long).map(|value| match value.as_str() {
                "" => "the pod's node".to_owned(),
                value => format!("`{value}`"),
            });
            let (help, default) = help_and_default(arg);
            text += &row([
                format!("`{}`", usage(arg)).as_str(),
                variable.as_deref().unwrap_or_default(),
                value.as_deref().unwrap_or_default(),
                &default,
                &help,
            ]);
        }
        text.push('\n');
    }
    text
}

fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| {
        arg.get_long()
            .is_some_and(|long| !["help", "version"].contains(&long))
    })
}

/// Returns a flag with the name of its value: `--flag VALUE`.
fn usage(arg: &Arg) -> String {
    let long = arg.get_long().unwrap();
    let name = arg.get_value_names().unwrap_or_default().first();
    match name.filter(|_| arg.get_action().takes_values()) {
        Some(name) => format!("--{long} {name}"),
        None => format!("--{long}"),
    }
}

/// Returns the possible values of a positional argument, or its name.
fn positional(arg: &Arg) -> String {
    let values = arg.get_possible_values();
    let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
    match names.is_empty() {
        true => arg.get_id().as_str().to_uppercase(),
        false => names.join("|"),
    }
}

/// Returns the help of a flag and of its values, and its default. The help of some flags states the default in words.
fn help_and_default(arg: &Arg) -> (String, String) {
    let help = arg.get_help().unwrap().to_string();
    let (help, said) = match help.split_once(" [default: ") {
        Some((help, default)) => (help.to_owned(), default.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let defaults: Vec<String> = arg
        .get_default_values()
        .iter()
        .filter(|_| arg.get_action().takes_values())
        .map(|value| format!("`{}`", value.display()))
        .collect();
    let default = match defaults.is_empty() {
        true => said,
        false => defaults.join(", "),
    };
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| !matches!(arg.get_action(), ArgAction::SetTrue))
        .map(|value| match value.get_help().map(ToString::to_string) {
            // The help of `on` and `off` adds nothing to their names.
            Some(help) if !help.starts_with("Switched ") => format!("`{}`: {help}", value.get_name()),
            _ => format!("`{}`", value.get_name()),
        })
        .collect();
    match values.is_empty() {
        true => (help, default),
        false => (format!("{help}. {}", values.join("; ")), default),
    }
}

/// Returns the table of the other commands, each with the flags that `run` does not have.
fn commands() -> String {
    let run = command("run");
    let of_run: Vec<&str> = flags(&run).filter_map(Arg::get_long).collect();
    let mut text = row([
        "command",
        "what it does",
        "flags",
        "flags of `run` that it takes too",
    ]);
    text += &row(["---"; 4]);
    let mut cli = Cli::command();
    cli.build();
    for command in cli.get_subcommands() {
        if ["run", "guard", "help"].contains(&command.get_name()) {
            continue;
        }
        let (shared, own): (Vec<&Arg>, Vec<&Arg>) =
            flags(command).partition(|arg| of_run.contains(&arg.get_long().unwrap()));
        let own: Vec<String> = own.iter().map(|arg| format!("`{}`", usage(arg))).collect();
        let shared: Vec<String> = shared
            .iter()
            .map(|arg| format!("`--{}`", arg.get_long().unwrap()))
            .collect();
        let shared = match shared.len() == of_run.len() {
            true => "all".to_owned(),
            false => shared.join(", "),
        };
        let words: Vec<String> = command.get_positionals().map(positional).collect();
        let words = [vec![command.get_name().to_owned()], words].concat().join(" ");
        text += &row([
            format!("`{words}`").as_str(),
            &command.get_about().unwrap().to_string(),
            &own.join(", "),
            &shared,
        ]);
    }
    text
}
