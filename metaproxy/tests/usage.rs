//! The binary's own view of its words and its environment. Needs neither root nor eBPF.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::process::Command;

/// What it says to `run` with these variables, and its exit status.
fn run(environment: &[(&str, &str)]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
        .arg("run")
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn variables_count_unless_they_are_empty() {
    let (said, status) = run(&[
        ("METAPROXY_MANIFESTS", "/pods"),
        ("METAPROXY_DEFAULT_ROLE", "a b"),
    ]);
    assert!(said.contains("--default-role \"a b\""), "{said}");
    assert_eq!(status, Some(64));
    // As charts set them for what is not given.
    let empty = [
        "METAPROXY_BASE_ROLE_ARN",
        "METAPROXY_DEFAULT_ROLE",
        "METAPROXY_LISTEN_ADDRESS",
        "METAPROXY_LISTEN_PORT",
        "METAPROXY_ALLOW_PATH",
        "METAPROXY_SESSION_TAGS",
        "METAPROXY_CLUSTER_NAME",
        "METAPROXY_MANIFESTS",
    ];
    let (said, status) = run(&empty.map(|name| (name, "")));
    assert!(said.contains("no source of pods"), "{said}");
    assert_eq!(status, Some(64));
}
