//! Outages of the API server: it loses its history, fails, hangs, or cannot be reached.

use std::time::{Duration, Instant};

use crate::common::cluster::{cluster, has};
use crate::common::sessions::{ROLE, document, document_is_good};
use crate::common::{eventually, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::apiserver::Behaviour;
use rstest::rstest;
use serde_json::json;

/// A pod changes after the watch has ended, so that only a new list or a new watch can deliver the change.
#[rstest]
#[case::gone_in_the_watch(Some(410))]
#[case::another_error_in_the_watch(Some(500))]
#[case::ended(None)]
fn a_watch_that_ends_or_is_too_old_is_started_again(#[case] code: Option<u16>) {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let _agent = cluster.agent(&["--namespace-policy", "required"]);
    cluster.api.put(
        "namespaces",
        json!({ "metadata": { "name": "apps", "annotations": { "iam.amazonaws.com/permitted": ".*" } } }),
    );
    eventually("the role", || document_is_good(&a, "role-a"));
    let asking = start_dial(&a, &["--count", "0", "--seconds", "3"]);
    cluster.api.forget(code);
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    eventually("the change", || has(&a, "role-b"));
    eventually("health", || cluster.report().0 && !cluster.reports("degraded"));
    let got = outcomes(asking);
    assert!(
        got.keys().all(|role| role == "role-a" || role == "role-b"),
        "{got:?}"
    );
}

#[rstest]
#[case::too_old(410)]
#[case::too_new(504)]
#[case::busy(429)]
#[case::broken(500)]
fn a_watch_that_cannot_start_is_retried_and_known_pods_are_served(#[case] code: u16) {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.behave(Behaviour {
        watches: Some(code),
        ..Behaviour::default()
    });
    let _agent = cluster.agent(&[]);
    assert!(document_is_good(&a, "role-a"));
    eventually("a report", || {
        cluster.reports("no watch now; the last known state stays in force")
    });
    assert!(cluster.report().0, "pods are served");
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    cluster.api.behave(Behaviour::default());
    let start = Instant::now();
    while !has(&a, "role-b") {
        assert!(
            start.elapsed() < Duration::from_secs(12),
            "{}",
            cluster.report().1
        );
    }
    eventually("health", || cluster.reports("[+]pods ok"));
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Refused,
    Broken,
    Hanging,
}

/// During an outage known pods are served, and requests of unknown pods are held and then refused. An agent that
/// starts meanwhile knows the pods that the last agent knew.
#[rstest]
#[case(Outage::Refused)]
#[case(Outage::Broken)]
#[case(Outage::Hanging)]
fn an_outage_does_not_affect_known_pods_even_if_the_agent_restarts_meanwhile(#[case] outage: Outage) {
    let Some(mut cluster) = cluster() else { return };
    cluster.api.put(
        "namespaces",
        json!({ "metadata": { "name": "apps", "annotations": { "iam.amazonaws.com/permitted": "role-a" } } }),
    );
    let a = cluster.with_role("a", "role-a");
    let refused = cluster.with_role("refused", "role-b");
    let unknown = cluster.pod("unknown");
    let mut agent = cluster.agent(&["--namespace-policy", "required"]);
    assert!(document_is_good(&a, "role-a"));
    let remembered = cluster.node.lab.dir().join("run/pods.json");
    eventually("what is known to be written", || {
        std::fs::read_to_string(&remembered)
            .is_ok_and(|text| text.contains(a.uid()) && text.contains(refused.uid()))
    });
    match outage {
        Outage::Refused => cluster.api.go_away(),
        Outage::Broken => cluster.api.behave(Behaviour {
            always: Some(503),
            ..Behaviour::default()
        }),
        Outage::Hanging => cluster.api.behave(Behaviour {
            hangs: true,
            ..Behaviour::default()
        }),
    }
    cluster.api.forget(None);
    let looks_right = |what: &str| {
        assert!(document_is_good(&a, "role-a"), "{what}");
        assert_eq!(
            document(&refused, "role-b").json()["Code"],
            "AssumeRoleUnauthorizedAccess",
            "{what}"
        );
        let start = Instant::now();
        assert!(has(&unknown, "status 503"), "{what}");
        assert!(start.elapsed() > Duration::from_millis(500), "{what}: held");
    };
    looks_right("while it runs");
    agent.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    let start = Instant::now();
    let _agent = cluster.agent(&["--namespace-policy", "required"]);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    looks_right("started meanwhile");
    let (ready, report) = cluster.report();
    assert!(
        ready && report.contains("those of the last run are served"),
        "{report}"
    );
    match outage {
        Outage::Refused => cluster.api.come_back().unwrap(),
        Outage::Broken | Outage::Hanging => cluster.api.behave(Behaviour::default()),
    }
    cluster.put("unknown", &unknown, json!({ ROLE: "role-a" }));
    let start = Instant::now();
    while !has(&unknown, "role-a") {
        assert!(
            start.elapsed() < Duration::from_secs(45),
            "{}",
            cluster.report().1
        );
    }
    eventually("health", || {
        cluster.reports("[+]pods ok") && cluster.reports("[+]namespaces ok")
    });
}

#[test]
fn an_agent_that_knows_no_pod_attaches_and_gives_no_pod_credentials() {
    let Some(mut cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.go_away();
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&[])).unwrap();
    agent.wait_for("attached to the pods' cgroup").unwrap();
    assert!(has(&a, "status 503"));
    let (ready, report) = cluster.report();
    assert!(!ready && report.contains("[-]pods failed: since"), "{report}");
    assert!(cluster.node.imds.seen_from_pods().is_empty());
    cluster.api.come_back().unwrap();
    agent.wait_for(" ready ").unwrap();
    eventually("the role", || document_is_good(&a, "role-a"));
}
