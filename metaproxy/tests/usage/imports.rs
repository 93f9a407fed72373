//! Modules import in one direction: each imports only modules that stand before it in [`ORDER`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use regex::Regex;

/// The modules of the crate, from those that import none to those that wire everything together. A new module gets
/// its place here.
const ORDER: [&str; 27] = [
    // Helpers without a domain.
    "captured_log",
    "error_chain",
    "input",
    "memory",
    "node_ports",
    "rate_limiter",
    "shutdown",
    "terminal",
    // What is known of node and cluster.
    "runtime_dir",
    "telemetry",
    "apiserver",
    "pods",
    "cgroups",
    // The stages of a connection and a request.
    "intercept",
    "identify",
    "roles",
    "credentials",
    "imds",
    // What shows the agent.
    "explain",
    "introspection",
    "admin",
    // The processes.
    "guard",
    "agent",
    "doctor",
    // The command line.
    "cli",
    "migrate",
    "commands",
];

/// Files and folders of tests, which may import everything.
const TESTS: [&str; 5] = ["tests", "tests.rs", "testing.rs", "scenarios", "scenarios.rs"];

#[test]
fn modules_import_only_modules_that_stand_before_them() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let import = Regex::new(r"\bcrate::([a-z_]+)").unwrap();
    let place = |module: &str| ORDER.iter().position(|known| *known == module);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for file in files(&source) {
        let relative = file.strip_prefix(&source).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap();
        let module = module.trim_end_matches(".rs");
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let Some(own) = place(module) else {
            panic!("{module} has no place in the order of modules, {}", file!());
        };
        for imported in import.captures_iter(&code(&file)) {
            let imported = &imported[1];
            let Some(other) = place(imported) else { continue };
            seen.insert((own, other));
            if other > own {
                wrong.push(format!("{}: crate::{imported}", relative.display()));
            }
        }
    }
    assert_eq!(wrong, [""; 0], "imports of a later module");
    assert!(seen.len() > 80, "pairs of modules: {}", seen.len());
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

/// Returns the code of a file without comments and without its module of tests, which is its end.
fn code(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.collect::<Vec<_>>().join("\n");
    let test = Regex::new(r"\n#\[cfg\(test\)\]\n(pub(\([a-z ]+\))? )?mod tests \{").unwrap();
    let end = test.find(&code).map_or(code.len(), |found| found.start());
    code[..end].to_owned()
}
