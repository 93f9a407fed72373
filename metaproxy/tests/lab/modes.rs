//! `--mode observe` and `--mode firewall`.

use crate::common::{IMDS, IMDS6, MAPPED, agent_binary, counts, dial, eventually, node};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::PodSpec;
use rstest::rstest;

#[test]
fn observing_changes_nothing_and_logs_what_each_pod_would_get() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let without = node.lab.pod(PodSpec::without_role("without")).unwrap();
    let malformed = node.lab.pod(PodSpec::with_role("malformed", "a b")).unwrap();
    let quiet = node.lab.pod(PodSpec::with_role("quiet", "role-quiet")).unwrap();
    let host_network = node
        .lab
        .pod(PodSpec {
            host_network: true,
            ..PodSpec::with_role("ingress", "role-ingress")
        })
        .unwrap();
    let agent = Agent::spawn(&node.lab, &node.spec().with(&["--mode", "observe"])).unwrap();
    agent.wait_for("ready: observing").unwrap();
    for pod in [&a, &without, &malformed, &host_network] {
        for to in [IMDS, MAPPED, IMDS6] {
            assert_eq!(dial(pod, &["--to", to]), counts([("node", 1)]), "{to}");
        }
        assert_eq!(dial(pod, &["--peername"]), counts([(IMDS, 1)]));
    }
    for (pod, change) in [
        (
            "apps/a",
            "it would get role arn:aws:iam::123456789012:role/role-a from annotation iam.amazonaws.com/role",
        ),
        (
            "apps/without",
            "it would get no credentials: pod apps/without has no role",
        ),
        (
            "apps/malformed",
            "it would get no credentials: pod apps/malformed gets no role",
        ),
        (
            "apps/ingress",
            "it would get role arn:aws:iam::123456789012:role/role-ingress",
        ),
    ] {
        let line = agent.wait_for(change).unwrap();
        assert!(
            agent
                .logged()
                .lines()
                .any(|line| line.contains(change) && line.contains(&format!("pod=\"{pod}\""))),
            "{pod}: {line}"
        );
    }
    assert!(!agent.logged().contains("apps/quiet"), "it did not ask");
    drop(quiet);
    // The line is logged once per pod, however often the pod asks. It is logged again when the pod would get
    // something else.
    assert_eq!(dial(&a, &["--count", "20"]), counts([("node", 20)]));
    a.write_manifest(&[("iam.amazonaws.com/role".to_owned(), "role-new".to_owned())])
        .unwrap();
    eventually("the change is reported", || {
        dial(&a, &[]) == counts([("node", 1)]) && agent.logged().contains("role/role-new")
    });
    let said = agent.logged();
    assert_eq!(said.matches("role/role-a ").count(), 1, "{said}");
    drop(agent);
    node.assert_nothing_loaded();
}

#[test]
fn a_firewall_serves_metadata_but_no_role_and_requests_no_credentials() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    // The firewall needs neither an STS nor a base ARN.
    let spec = AgentSpec {
        base: None,
        flags: vec!["--mode".to_owned(), "firewall".to_owned()],
        ..node.spec()
    };
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    for to in [IMDS, MAPPED, IMDS6] {
        assert_eq!(dial(&a, &["--to", to]), counts([("status 404", 1)]), "{to}");
    }
    let role = "/latest/meta-data/iam/security-credentials/node";
    assert_eq!(dial(&a, &["--path", role]), counts([("status 404", 1)]));
    let seen: Vec<String> = node.imds.seen().into_iter().map(|seen| seen.request).collect();
    assert!(
        !seen.iter().any(|request| request.contains("/iam/")),
        "credentials were not asked for: {seen:?}"
    );
    let id = dial(&a, &["--path", "/latest/meta-data/instance-id"]);
    assert!(
        id.keys().all(|outcome| !outcome.starts_with("status")),
        "metadata is passed through: {id:?}"
    );
    assert_eq!(node.imds.seen_from_pods(), []);
    assert_eq!(node.host_dial(&[]), counts([("node", 1)]));
}

#[rstest]
#[case::guard_while_observing(&["run", "--manifests", "/x", "--mode", "observe", "--guard", "connect"], "--guard with --mode observe")]
#[case::no_source_of_pods(&["run"], "no source of pods")]
#[case::head_too_short(&["run", "--manifests", "/x", "--max-head-size", "1"], "1 is not in 8..=64")]
#[case::idle_too_long(&["run", "--manifests", "/x", "--idle-timeout", "2h"], "not a duration from 1s to 1h")]
fn bad_usage_is_reported(#[case] words: &[&str], #[case] sentence: &str) {
    let output = std::process::Command::new(agent_binary())
        .args(words)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains(sentence), "{said}");
}
