//! The changelog has the format of Keep a Changelog 1.1.0, so that tools can read it.

use super::commands::root;
use super::read;

/// The kinds of changes, in the order that they have within a version.
const KINDS: [&str; 6] = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];

#[test]
fn the_changelog_has_the_form_of_keep_a_changelog() {
    let changelog = read(&root().join("CHANGELOG.md"));
    assert!(changelog.starts_with("# Changelog\n"));
    let versions: Vec<&str> = changelog.split("\n## ").skip(1).collect();
    assert!(
        versions[0].starts_with("[Unreleased]\n"),
        "changes that are not released come first"
    );
    for (index, version) in versions.iter().enumerate() {
        let (title, text) = version.split_once('\n').unwrap();
        assert!(
            index == 0 || is_release(title),
            "not `[1.2.3] - 2026-01-31`: {title}"
        );
        let parts: Vec<&str> = text.split("\n### ").skip(1).collect();
        assert!(index == 0 || !parts.is_empty(), "{title} has no changes");
        let kinds: Vec<usize> = parts.iter().map(|part| kind_of(title, part)).collect();
        assert!(
            kinds.is_sorted_by(|one, next| one < next),
            "{title}: each kind once, in the order {KINDS:?}"
        );
    }
}

/// Returns the index of a part's kind in `KINDS`. Asserts that the part is a list.
fn kind_of(title: &str, part: &str) -> usize {
    let (kind, changes) = part.split_once('\n').unwrap();
    for line in changes.lines().filter(|line| !line.is_empty()) {
        let is_change = line.starts_with("- ") || line.starts_with("  ");
        assert!(is_change, "{title}, {kind}: not in a list: {line}");
    }
    assert!(changes.contains("\n- "), "{title}: {kind} is empty");
    let place = KINDS.iter().position(|one| *one == kind);
    place.unwrap_or_else(|| panic!("{title}: {kind} is none of {KINDS:?}"))
}

/// Returns whether a title has the form `[1.2.3] - 2026-01-31`.
fn is_release(title: &str) -> bool {
    let are_numbers = |text: &str, separator: char, widths: [Option<usize>; 3]| {
        let parts: Vec<&str> = text.split(separator).collect();
        parts.len() == widths.len()
            && parts.iter().zip(widths).all(|(part, width)| {
                let fits = width.is_none_or(|width| part.len() == width);
                fits && part.parse::<u32>().is_ok()
            })
    };
    let version_and_date = title.strip_prefix('[').and_then(|rest| rest.split_once("] - "));
    version_and_date.is_some_and(|(version, date)| {
        are_numbers(version, '.', [None; 3]) && are_numbers(date, '-', [Some(4), Some(2), Some(2)])
    })
}

#[test]
fn titles_of_releases_are_a_version_and_a_date() {
    for good in ["[0.1.0] - 2026-01-31", "[10.20.30] - 2027-12-01"] {
        assert!(is_release(good), "{good}");
    }
    for bad in [
        "0.1.0 - 2026-01-31",
        "[0.1] - 2026-01-31",
        "[0.1.0] - 31.01.2026",
        "[0.1.0]",
    ] {
        assert!(!is_release(bad), "{bad}");
    }
}
