//! Every path of the repository that the documents for contributors name must exist.

use std::path::Path;

use super::commands::root;
use super::read;

/// The directory to which paths may be relative, as ARCHITECTURE.md says under "Stages".
const BELOW_SOURCE: &str = "metaproxy/src";

#[test]
fn every_path_that_the_architecture_and_contributing_name_exists() {
    let mut found = 0;
    for document in ["ARCHITECTURE.md", "CONTRIBUTING.md"] {
        for line in read(&root().join(document)).lines() {
            let mut beside: Option<String> = None;
            for path in paths(line) {
                let is_there = |base: &Path| base.join(path).exists();
                // A bare name is in the directory of the path before it in its line.
                let neighbour = beside.as_ref().is_some_and(|dir| is_there(&root().join(dir)));
                let source = is_there(&root().join(BELOW_SOURCE));
                assert!(
                    is_there(&root()) || source || neighbour || is_elsewhere(path),
                    "{document}: there is no {path}, neither below the root, nor in {BELOW_SOURCE}, nor in {beside:?}: {line}"
                );
                if is_there(&root()) {
                    beside = Path::new(path).parent().map(|dir| dir.display().to_string());
                }
                found += 1;
            }
        }
    }
    assert!(found > 150, "{found}");
}

/// Returns the spans between backticks that look like a file or directory of the repository: they end like one, and
/// are neither a pattern nor a file of a node.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let spans = line.split('`').skip(1).step_by(2);
    spans.filter(|span| {
        let is_plain = span
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_'));
        let ends = [".rs", ".md", ".yaml", ".json", ".toml", ".snap", ".py", "/"];
        is_plain && !span.starts_with('/') && ends.iter().any(|end| span.ends_with(end))
    })
}

/// Returns whether a path is a file in the runtime directory of a node, or is relative to a directory of the lab.
fn is_elsewhere(path: &str) -> bool {
    const OF_THE_RUNTIME_DIRECTORY: [&str; 1] = ["pods.json"];
    const OF_THE_LAB: &str = "xtask/lab/src";
    const OF_THE_TESTS: &str = "metaproxy/tests/lab";
    OF_THE_RUNTIME_DIRECTORY.contains(&path)
        || [OF_THE_LAB, OF_THE_TESTS]
            .iter()
            .any(|dir| root().join(dir).join(path).exists())
}
