//! Agent and guard with only the capabilities that the chart's `hardened` form gives them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::common::{Node, UNREACHABLE, agent_binary, counts, dial, node};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::PodSpec;

/// The capabilities in the chart's `hardened` form.
const CAPABILITIES: [&str; 4] = ["bpf", "perfmon", "net_admin", "dac_read_search"];

/// Returns a script that runs the binary with only these capabilities.
fn with_capabilities(node: &Node, capabilities: &[&str]) -> PathBuf {
    let script = node.lab.dir().join("with-capabilities");
    let list: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let text = format!(
        "#!/bin/sh\nexec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all{list} {} \"$@\"\n",
        agent_binary().display()
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn a_guard_needs_exactly_three_of_the_capabilities() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let needed = &CAPABILITIES[..3];
    let flags = ["--close", "at-once"];
    for spared in needed {
        let left: Vec<&str> = needed.iter().copied().filter(|name| name != spared).collect();
        let mut guard = Agent::guard(&node.lab, &with_capabilities(&node, &left), &flags).unwrap();
        assert_eq!(
            guard.wait().unwrap().code(),
            Some(1),
            "without {spared}: {}",
            guard.logged()
        );
        node.assert_nothing_loaded();
    }
    let guard = Agent::guard(&node.lab, &with_capabilities(&node, needed), &flags).unwrap();
    guard.wait_for("guard closed").unwrap();
    guard.wait_for("uplink=up0").unwrap();
    assert_eq!(dial(&a, &[]), counts([(UNREACHABLE, 1)]));
}

#[test]
fn four_capabilities_are_enough_and_none_can_be_spared() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let with = |capabilities: &[&str]| AgentSpec {
        binary: with_capabilities(&node, capabilities),
        ..node.spec()
    };
    for spared in CAPABILITIES {
        let left: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != spared).collect();
        let mut agent = Agent::spawn(&node.lab, &with(&left)).unwrap();
        assert_eq!(
            agent.wait().unwrap().code(),
            Some(1),
            "without {spared}: {}",
            agent.logged()
        );
        assert!(
            agent.logged().contains("ermi"),
            "without {spared}: {}",
            agent.logged()
        );
        node.assert_nothing_loaded();
    }
    let _agent = Agent::start(&node.lab, &with(&CAPABILITIES)).unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));
}
