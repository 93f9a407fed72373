//! Links in documents, and references to documents in code, values, rules and units. The file and its heading must
//! exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use rstest::rstest;

use super::commands::root;
use super::{documents, read};

/// The maximum number of lines of the README. Longer text belongs in a document of its own.
const MAX_README_LINES: usize = 150;

#[test]
fn every_link_of_every_document_leads_to_a_file_and_a_heading() {
    let mut found = 0;
    for document in documents() {
        let text = read(&document);
        let dir = document.parent().unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (path, anchor) = path_and_anchor(link);
            let target = match path {
                "" => document.clone(),
                path => dir.join(path),
            };
            check(&format!("{}: {link}", document.display()), &target, anchor);
            found += 1;
        }
    }
    assert!(found > 80, "{found}");
}

/// Errors, comments, `runbook_url` and other texts name documents.
#[test]
fn every_document_that_a_file_names_exists_with_its_heading() {
    let tracked = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    let names = String::from_utf8(tracked.stdout).unwrap();
    let mut found = 0;
    for name in names.lines() {
        // A file that is not text names no document.
        let Ok(text) = fs::read_to_string(root().join(name)) else {
            continue;
        };
        for reference in references(&text) {
            let (path, anchor) = path_and_anchor(reference);
            check(&format!("{name}: {reference}"), &root().join(path), anchor);
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

#[test]
fn the_readme_is_short_and_leads_to_every_document() {
    let readme = read(&root().join("README.md"));
    let lines = readme.lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines");
    for document in documents() {
        let name = document.strip_prefix(root()).unwrap().display().to_string();
        let is_there = name == "README.md" || links(&readme).any(|link| link == name);
        assert!(is_there, "the README does not lead to {name}");
    }
}

#[rstest]
#[case("# Log", &["log"])]
#[case("## kube2iam 0.15.0, and metaproxy", &["kube2iam-0150-and-metaproxy"])]
#[case("### The node's role and the pods' roles", &["the-nodes-role-and-the-pods-roles"])]
#[case("## IAM: a cookbook\n\ntext\n\n## IAM: a cookbook", &["iam-a-cookbook", "iam-a-cookbook-1"])]
#[case("```\n# a comment\n```\n## `Code`", &["code"])]
#[case("    # a comment\n#nothing\n# Something", &["something"])]
fn anchors_are_those_that_github_gives(#[case] document: &str, #[case] want: &[&str]) {
    assert_eq!(anchors(document), want);
}

/// Returns the targets of `[text](target)`.
fn links(document: &str) -> impl Iterator<Item = &str> {
    let rests = document.split("](").skip(1);
    rests.filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// Returns the paths of documents relative to the root, with or without the anchor of a heading.
fn references(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '#');
    text.match_indices("deploy/docs/").filter_map(move |(start, _)| {
        let rest = &text[start..];
        let end = rest.find(|c: char| !is_part(c)).unwrap_or(rest.len());
        // A final `.` ends a sentence. A final `#` precedes an anchor that is inserted at run time.
        let reference = rest[..end].trim_end_matches(['.', '#']);
        reference.contains(".md").then_some(reference)
    })
}

fn path_and_anchor(link: &str) -> (&str, Option<&str>) {
    match link.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor)),
        None => (link, None),
    }
}

fn check(place: &str, target: &Path, anchor: Option<&str>) {
    assert!(target.exists(), "{place}: there is no {}", target.display());
    let Some(anchor) = anchor else { return };
    let anchors = anchors(&read(target));
    assert!(
        anchors.iter().any(|one| one == anchor),
        "{place}: no heading has that anchor: {anchors:?}"
    );
}

/// Returns the anchors of all headings, as GitHub makes them: in lower case, without punctuation, and with `-` for a
/// blank. The second heading with a name gets the suffix `-1`.
fn anchors(document: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = Vec::new();
    let mut in_fence = false;
    for line in document.lines() {
        if line.starts_with("```") {
            in_fence = !in_fence;
        }
        let heading = line.trim_start_matches('#');
        if in_fence || heading.len() == line.len() || !heading.starts_with(' ') {
            continue;
        }
        let name = heading.trim().to_lowercase().replace(' ', "-");
        let name: String = name
            .chars()
            .filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_'))
            .collect();
        let times = seen.entry(name.clone()).or_default();
        anchors.push(match *times {
            0 => name,
            times => format!("{name}-{times}"),
        });
        *times += 1;
    }
    anchors
}
