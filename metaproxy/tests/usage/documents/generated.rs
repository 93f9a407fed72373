//! Parts of documents that are generated from the program. Each part is between two comments in its document. A test
//! fails if it is not current.

use std::fs;

use super::commands::root;
use super::read;

/// The environment variable with which the tests write the generated parts instead of comparing them.
const WRITE: &str = "METAPROXY_WRITE_DOCUMENTS";

/// Compares the generated part `name` of a document with `wanted`, or writes it if the variable is set.
pub fn check(document: &str, name: &str, wanted: &str) {
    let path = root().join(document);
    let text = read(&path);
    let begin = format!("<!-- generated: {name} -->\n");
    let end = format!("<!-- end of generated: {name} -->\n");
    let (before, rest) = text
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{document} has no line {begin:?}"));
    let (present, after) = rest
        .split_once(&end)
        .unwrap_or_else(|| panic!("{document} has no line {end:?}"));
    let wanted = format!("\n{}\n\n", wanted.trim());
    if std::env::var_os(WRITE).is_some() {
        fs::write(&path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        return;
    }
    let is_current = present == wanted;
    assert!(
        is_current,
        "{document}: the part `{name}` is not current; `{WRITE}=1 cargo test --package metaproxy --test usage` writes it"
    );
}

/// Formats a row of a Markdown table.
pub fn row<'a>(cells: impl IntoIterator<Item = &'a str>) -> String {
    let cells: Vec<String> = cells
        .into_iter()
        .map(|cell| {
            cell.replace('|', "\\|")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        })
        .collect();
    format!("| {} |\n", cells.join(" | "))
}
