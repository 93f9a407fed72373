//! Test of a build whose eBPF programs log. Without the feature `ebpf-log` this test binary contains no tests. It
//! still exists then, because `cargo test --test '*'` fails if a target requires a feature that is off.
#![cfg(feature = "ebpf-log")]
#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

#[path = "lab/common/mod.rs"]
mod common;

use common::{counts, dial, node};
use metaproxy_lab::pod::PodSpec;

#[test]
fn each_redirected_connection_is_logged_by_the_program_itself() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
    use std::os::unix::fs::MetadataExt as _;
    let cgroup = std::fs::metadata(a.cgroup()).unwrap().ino();
    agent
        .wait_for(&format!("redirected cgroup {cgroup} netns "))
        .unwrap();
    drop(agent);
    node.assert_nothing_loaded();
}
