//! Reads the mount points of the cgroup v2 tree.

use std::path::PathBuf;

/// Returns the mount points of type cgroup2, sorted, from the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
///
/// This does not use `procfs`, which does not decode escaped characters, and fails if it cannot read the line of any
/// other mount.
pub(super) fn cgroup2_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut mounts: Vec<PathBuf> = mountinfo
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let point = mount.split(' ').nth(4)?;
            (file_system.split(' ').next()? == "cgroup2").then(|| unescape(point).into())
        })
        .collect();
    mounts.sort();
    mounts.dedup();
    mounts
}

/// Decodes blanks and backslashes, which mountinfo writes as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, character)| {
            text.replace(code, character)
        })
}
