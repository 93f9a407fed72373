//! Checks of the documents. The programs must accept the commands and the configuration in them. Every block of every
//! document is checked, and a block of an unknown kind is a failure.

mod changelog;
mod commands;
mod configuration;
mod generated;
mod links;
mod paths;
mod reasons;
mod text;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use commands::{check_line, check_mention, root, tool};
use text::{Block, blocks, lines_of, mentions};

/// Returns all Markdown documents of the repository.
fn documents() -> Vec<PathBuf> {
    let tracked = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    let names = String::from_utf8(tracked.stdout).unwrap();
    let documents: Vec<PathBuf> = names.lines().map(|name| root().join(name)).collect();
    assert!(documents.len() >= 5, "git lists the documents: {documents:?}");
    documents
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn programs_accept_every_block_of_every_document() {
    let (mut commands, mut files, mut outputs) = (0, 0, 0);
    for document in documents() {
        for block in blocks(&read(&document)) {
            let place = format!("{}:{}", document.display(), block.line);
            if block.is_drawing() {
                continue;
            }
            if block.is_explanation() {
                explanation(&place, &block);
                outputs += 1;
            } else if block.is_policy() {
                let policy: Result<Value, _> = serde_json::from_str(&block.text);
                assert!(
                    policy.is_ok_and(|policy| policy["Version"] == "2012-10-17"),
                    "{place}"
                );
                files += 1;
            } else if block.is_yaml() {
                yaml(&place, &block);
                files += 1;
            } else {
                for line in lines_of(&block.text) {
                    check_line(&place, &line);
                    commands += 1;
                }
            }
        }
    }
    assert!(
        commands > 35 && files >= 3 && outputs >= 1,
        "{commands} {files} {outputs}"
    );
}

#[test]
fn programs_accept_every_command_that_a_document_mentions() {
    let mut found = 0;
    for document in documents() {
        let text = read(&document);
        for mention in mentions(&text) {
            check_mention(&document.display().to_string(), &mention);
            found += 1;
        }
    }
    assert!(found > 60, "{found}");
}

/// Checks the examples in the help of each command.
#[test]
fn programs_accept_the_examples_of_every_help() {
    let mut found = 0;
    for command in [
        "run",
        "guard",
        "explain",
        "doctor",
        "status",
        "migrate",
        "completions",
        "probe",
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
            .args([command, "--help"])
            .env("COLUMNS", "200")
            .output()
            .unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let (_, examples) = help
            .split_once("\nExamples:\n")
            .unwrap_or_else(|| panic!("{help}"));
        let examples: Vec<&str> = examples
            .lines()
            .take_while(|line| line.starts_with("  "))
            .collect();
        assert!(!examples.is_empty(), "{help}");
        for line in examples {
            check_line(&format!("{command} --help"), line.trim());
            found += 1;
        }
    }
    assert!(found >= 12, "{found}");
}

/// Checks the commands in comments of values and units, and in helm's notes after an installation.
#[test]
fn programs_accept_the_commands_in_notes_examples_and_units() {
    let mut found = 0;
    for example in fs::read_dir(root().join("deploy/examples")).unwrap() {
        let path = example.unwrap().path();
        if path.is_dir() {
            continue;
        }
        for line in read(&path).lines().filter_map(|line| line.strip_prefix("#   ")) {
            check_line(&path.display().to_string(), line.trim());
            found += 1;
        }
    }
    assert!(found >= 3, "{found}");
    let unit = root().join("deploy/systemd/metaproxy-guard.service");
    let text = read(&unit);
    let started: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStart="))
        .collect();
    assert_eq!(started.len(), 1);
    check_line("the unit", started[0]);

    let Some(helm) = tool("helm") else { return };
    for values in [
        "namespacePolicy=off",
        "namespacePolicy=required,webIdentity.enabled=true,startupTaint=a/b,adminAddress=0.0.0.0:16925",
        "namespacePolicy=off,guard.placement=sidecar",
    ] {
        let output = Command::new(helm.clone())
            .args([
                "install",
                "metaproxy",
                "deploy/helm/metaproxy",
                "--dry-run=client",
            ])
            .args(["--set", values])
            .current_dir(root())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, notes) = text.split_once("\nNOTES:\n").unwrap();
        let commands: Vec<&str> = notes
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with("kubectl "))
            .collect();
        assert!(commands.len() >= 4, "{notes}");
        for line in commands {
            check_line("NOTES.txt", line);
        }
    }
}

/// Asserts that an explanation is what the program prints. Line breaks may differ, and parts may be omitted.
fn explanation(place: &str, block: &Block) {
    let given = root().join(
        "metaproxy/src/introspection/snapshots/metaproxy__introspection__scenarios__answer_event_log_and_explanation_say_the_same.snap",
    );
    let collapsed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let given = collapsed(&read(&given));
    let mut entries: Vec<String> = Vec::new();
    for line in block.text.lines() {
        match entries.last_mut().filter(|_| line.starts_with(' ')) {
            Some(entry) => entry.push_str(line),
            None => entries.push(line.to_owned()),
        }
    }
    assert!(entries.len() > 3, "{place}");
    for entry in entries {
        let entry = collapsed(&entry);
        assert!(given.contains(&entry), "{place}: nothing explains so: {entry}");
    }
}

/// Checks a block that is values of the chart, or a kustomization of the base.
fn yaml(place: &str, block: &Block) {
    let parsed: Value =
        serde_yaml_ng::from_str(&block.text).unwrap_or_else(|error| panic!("{place}: {error}"));
    let dir = tempfile::tempdir_in(root().join("target")).unwrap();
    let (program, words) = if parsed.get("resources").is_some() {
        // kustomize accepts a local base only as a relative path.
        let base = "github.com/example/metaproxy/deploy/kustomize/base";
        assert!(block.text.contains(base), "{place}");
        let text = block.text.replace(base, "../../deploy/kustomize/base");
        fs::write(dir.path().join("kustomization.yaml"), text).unwrap();
        (
            "kubectl",
            vec!["kustomize".to_owned(), dir.path().display().to_string()],
        )
    } else {
        let values = dir.path().join("values.yaml");
        fs::write(&values, &block.text).unwrap();
        let words = [
            "template",
            "metaproxy",
            "deploy/helm/metaproxy",
            "--set",
            "namespacePolicy=off",
            "--values",
        ];
        let mut words: Vec<String> = words.map(str::to_owned).into();
        words.push(values.display().to_string());
        ("helm", words)
    };
    let Some(path) = tool(program) else { return };
    let output = Command::new(path)
        .args(&words)
        .current_dir(root())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{place}: {program} {words:?}: {said}");
    if program == "kubectl" {
        let made = String::from_utf8(output.stdout).unwrap();
        for wanted in [
            "image: registry.example.com/metaproxy:0.1.0",
            "name: METAPROXY_NAMESPACE_POLICY\n          value: \"off\"",
        ] {
            assert!(made.contains(wanted), "{place}: no {wanted} in {made}");
        }
    }
}
