//! Checks that modules import in one direction: each module imports only modules that precede it in [`ORDER`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The modules of the crate, from modules that import no other to modules that connect everything. A new module must
/// be added here.
const ORDER: [&str; 27] = [
    // These are helpers without domain knowledge.
    "captured_log",
    "error_chain",
    "input",
    "memory",
    "node_ports",
    "rate_limiter",
    "shutdown",
    "terminal",
    // These hold the state of the node and the cluster.
    "runtime_dir",
    "telemetry",
    "apiserver",
    "pods",
    "cgroups",
    // These are the stages of a connection and a request.
    "intercept",
    "identify",
    "roles",
    "credentials",
    "imds",
    // These show the agent's state to operators.
    "explain",
    "introspection",
    "admin",
    // These run the processes and examine the node.
    "guard",
    "agent",
    "doctor",
    // These parse and run the commands.
    "cli",
    "migrate",
    "commands",
];

/// Files and folders of tests, which may import everything.
const TESTS: [&str; 5] = ["tests", "tests.rs", "testing.rs", "scenarios", "scenarios.rs"];

#[test]
fn modules_import_only_modules_that_precede_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in files(&source) {
        let relative = file.strip_prefix(&source).unwrap();
        let path = module_path(relative);
        let Some(module) = path.first() else { continue };
        let own = place(module);
        let own = own.unwrap_or_else(|| panic!("{module} has no place in the order of modules, {}", file!()));
        for imported in imports(&code(&file), path.len()) {
            let Some(other) = place(&imported) else { continue };
            seen.insert((own, other));
            if other > own {
                wrong.push(format!("{}: {imported}", relative.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "imports of a later module");
    assert!(seen.len() > 80, "pairs of modules: {}", seen.len());
}

/// Returns the names of a file's parent modules and of its own module. Returns no name for the roots of the crate.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .iter()
        .map(|part| part.to_str().unwrap().trim_end_matches(".rs").to_owned())
        .collect();
    if path
        .last()
        .is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str()))
    {
        path.pop();
    }
    path
}

/// Returns the top-level modules that code in a module of this depth names. Such a name follows `crate::`, or as many
/// `super::` as lead to the root.
fn imports(code: &str, depth: usize) -> Vec<String> {
    let absolute = Regex::new(r"\bcrate::\s*(\{|[a-z_]+)").unwrap();
    let relative = Regex::new(r"\b((?:super::)+)(\{|[a-z_]+)").unwrap();
    let absolute = absolute.captures_iter(code).map(|found| found[1].to_owned());
    let relative = relative.captures_iter(code).filter_map(|found| {
        let levels = found[1].matches("super::").count();
        (levels >= depth).then(|| found[2].to_owned())
    });
    let found: Vec<String> = absolute.chain(relative).collect();
    assert!(
        !found.iter().any(|name| name == "{"),
        "a list of modules, which this test does not read: write a line for each"
    );
    found
}

#[test]
fn imports_are_found_in_each_form() {
    let code = "use crate::pods::Pod;\npub(crate) use crate::roles;\nlet x = crate::imds::path::y();\nuse super::cli;";
    assert_eq!(imports(code, 1), ["pods", "roles", "imds", "cli"]);
    assert_eq!(imports("use super::super::cli; use super::x;", 2), ["cli"]);
    assert!(std::panic::catch_unwind(|| imports("use crate::{pods, roles};", 1)).is_err());
}

/// Returns the source files below a directory, except for those of tests.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if TESTS.contains(&name) {
            continue;
        }
        if path.is_dir() {
            files.extend(self::files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// Returns the code of a file without comments and without its test module, which is at the end of the file.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let test = Regex::new(r"\n#\[cfg\(test\)\]\n(pub(\([a-z ]+\))? )?mod tests \{").unwrap();
    let end = test.find(&code).map_or(code.len(), |found| found.start());
    code[..end].to_owned()
}
