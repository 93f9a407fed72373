//! Tests that annotations take effect as soon as they are set, and only for their own pod.

use std::time::Duration;

use serde_json::json;

use crate::kit::{Cluster, NAMESPACE, kubectl_json, within};

const ROLE: &str = "iam.amazonaws.com/role";
const SECOND: Duration = Duration::from_secs(1);

/// Sets, removes and changes a pod's annotation.
pub fn of_pods(cluster: &Cluster) {
    cluster.permit(".*");
    let pod = cluster.pod("changing", json!({}), json!({}));
    let other = cluster.pod("unchanging", json!({ ROLE: "of-other" }), json!({}));
    assert_eq!(
        (pod.role().as_str(), other.role().as_str()),
        ("status 404", "of-other")
    );
    for (annotation, role) in [
        ("iam.amazonaws.com/role=first", "first"),
        ("iam.amazonaws.com/role=second", "second"),
        ("iam.amazonaws.com/role-", "status 404"),
        ("iam.amazonaws.com/role=first", "first"),
    ] {
        cluster.annotate("pod", "changing", annotation);
        let took = pod.until_role(role);
        assert!(took < SECOND, "{annotation}: {took:?}");
        assert_eq!(other.role(), "of-other");
    }
    assert!(pod.has_credentials_of("first") && other.has_credentials_of("of-other"));
}

/// Sets and removes the namespace's annotations `permitted` and `allowed-roles`.
pub fn of_namespaces(cluster: &Cluster) {
    cluster.permit("first");
    let pod = cluster.pod("held", json!({ ROLE: "first" }), json!({}));
    pod.until_role("first");
    for (annotation, allowed) in [
        ("iam.amazonaws.com/permitted=nothing", false),
        ("iam.amazonaws.com/permitted=fir.*", true),
        ("iam.amazonaws.com/permitted-", false),
        (r#"iam.amazonaws.com/allowed-roles=["first"]"#, true),
        (r#"iam.amazonaws.com/allowed-roles=["second"]"#, false),
        (r#"iam.amazonaws.com/allowed-roles=["*"]"#, true),
        ("iam.amazonaws.com/allowed-roles-", false),
    ] {
        cluster.annotate("namespace", NAMESPACE, annotation);
        let start = std::time::Instant::now();
        within(SECOND, annotation, || pod.has_credentials_of("first") == allowed);
        eprintln!("{annotation}: {:?}", start.elapsed());
    }
    cluster.permit(".*");
}

/// Checks that the event has the sentence that the pod gets as an answer.
pub fn events(cluster: &Cluster) {
    cluster.permit("nothing");
    let pod = cluster.pod("refused", json!({ ROLE: "wanted" }), json!({}));
    let path = "/latest/meta-data/iam/security-credentials/wanted";
    let got = crate::common::dial(&pod.pod, &["--path", path]);
    let document: serde_json::Value = serde_json::from_str(got.keys().next().unwrap()).unwrap();
    let sentence = document["Message"].as_str().unwrap().to_owned();
    assert!(
        sentence.contains("is not permitted in namespace metaproxy-test"),
        "{sentence}"
    );
    let events = || {
        let found = kubectl_json(&[
            "get",
            "events",
            "--namespace",
            NAMESPACE,
            "--field-selector",
            "involvedObject.name=refused,reason=RoleRefused",
        ]);
        let items = found["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|event| event["message"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    within(Duration::from_secs(5), "an event", || !events().is_empty());
    for _ in 0..50 {
        crate::common::dial(&pod.pod, &["--path", path]);
    }
    std::thread::sleep(SECOND);
    assert_eq!(
        events(),
        std::slice::from_ref(&sentence),
        "once, and the same sentence"
    );
    assert!(cluster.agents_say(5000).contains(&sentence), "and in the log");
    cluster.permit(".*");
}
