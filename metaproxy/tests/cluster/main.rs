//! Tests of the chart's manifests on a real cluster. `cargo xtask test --cluster` runs them as root on the only node
//! of a disposable cluster, whose API server `$KUBECONFIG` names. The node gets a fake metadata service and a fake
//! STS.
//!
//! The scenarios share one installation, and run one after the other.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test panics where it fails"
)]

#[path = "../lab/common/mod.rs"]
mod common;

mod annotations;
mod api;
mod gone;
mod installed;
mod kit;
mod migrated;
mod outage;
mod rights;
mod rollout;
mod service_accounts;
mod tools;

use std::panic::{AssertUnwindSafe, catch_unwind};

use kit::Cluster;

type Scenario = (&'static str, fn(&Cluster));

const SCENARIOS: [Scenario; 18] = [
    (
        "pods of every kind get what is theirs",
        installed::every_kind_of_pod,
    ),
    ("twenty jobs that ask first of all", installed::jobs),
    ("annotations of pods count within a second", annotations::of_pods),
    (
        "annotations of namespaces count within a second",
        annotations::of_namespaces,
    ),
    ("a refusal is an event on the pod", annotations::events),
    ("service accounts' roles", service_accounts::roles),
    (
        "an admitted token is what STS is shown",
        service_accounts::without_the_annotation,
    ),
    ("a missing permission is named", rights::missing),
    ("the startup taint goes when pods are served", rights::taint),
    ("a watch that is too old begins anew", outage::forgotten),
    ("the API server is away", outage::away),
    ("a new instance beside the old one", rollout::surge),
    ("the hardened form serves too", rollout::hardened),
    (
        "the agent's pod is deleted or replaced, and the guard stays",
        gone::deleted,
    ),
    (
        "the agent's sandbox is killed, and the guard stays",
        gone::sandbox_killed,
    ),
    (
        "guard and agent are killed apart, and one of them stays",
        gone::killed_apart,
    ),
    (
        "migrated values of kube2iam's and kiam's manifests",
        migrated::values_install,
    ),
    ("nothing is left after the DaemonSet", installed::removal),
];

#[test]
#[ignore = "`cargo xtask test --cluster` runs it, where there is a cluster to throw away"]
fn acceptance() {
    assert!(
        std::env::var_os("METAPROXY_TEST_CLUSTER").is_some(),
        "`cargo xtask test --cluster` runs this, as it changes the cluster of $KUBECONFIG"
    );
    let only = std::env::var_os("METAPROXY_TEST_SCENARIO").map(|only| only.to_string_lossy().into_owned());
    let is_wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only.as_str()));
    assert!(
        SCENARIOS.iter().any(|(name, _)| is_wanted(name)),
        "no scenario is called {only:?}"
    );
    let cluster = Cluster::install();
    let mut failed = Vec::new();
    for (name, scenario) in SCENARIOS {
        if !is_wanted(name) {
            continue;
        }
        let start = std::time::Instant::now();
        let result = catch_unwind(AssertUnwindSafe(|| scenario(&cluster)));
        let outcome = if result.is_ok() { "ok" } else { "FAILED" };
        eprintln!(
            "scenario: {name} ... {outcome} ({:.1} s)",
            start.elapsed().as_secs_f64()
        );
        if result.is_err() {
            failed.push(name);
            eprintln!("{}", cluster.agents_say(25));
        }
    }
    drop(cluster);
    assert!(failed.is_empty(), "failed: {failed:?}");
}
