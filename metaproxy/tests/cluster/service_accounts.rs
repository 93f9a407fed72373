//! Tests of service accounts' roles, with tokens from the real API server.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use metaproxy_lab::sts::Call;
use serde_json::{Value, json};

use crate::common::eventually;
use crate::kit::{BASE, Cluster, NAMESPACE, apply, kubectl, within};

fn account(name: &str, annotations: Value) {
    apply(
        &json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": NAMESPACE, "annotations": annotations },
        })
        .to_string(),
    );
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn calls_for(cluster: &Cluster, role: &str) -> Vec<Call> {
    cluster
        .sts
        .calls()
        .into_iter()
        .filter(|call| call.role == format!("{BASE}{role}"))
        .collect()
}

/// Checks what STS gets: a token with the right audience, subject and pod, and no credentials of the node.
pub fn roles(cluster: &Cluster) {
    cluster.permit(".*");
    account(
        "web",
        json!({ "eks.amazonaws.com/role-arn": format!("{BASE}of-account") }),
    );
    let pod = cluster.pod("with-account", json!({}), json!({ "serviceAccountName": "web" }));
    assert_eq!(pod.role(), "of-account");
    assert!(pod.has_credentials_of("of-account"));
    let calls = calls_for(cluster, "of-account");
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(calls[0].session, "metaproxy-test.with-account");
    assert_eq!(calls[0].signed_by, "", "the node's role needs nothing for it");
    let token = calls[0].web_identity.as_ref().unwrap();
    let claims = claims(token);
    assert_eq!(claims["aud"], json!(["sts.amazonaws.com"]));
    assert_eq!(claims["sub"], "system:serviceaccount:metaproxy-test:web");
    assert_eq!(claims["kubernetes.io"]["pod"]["uid"], pod.pod.uid());
    let life = claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap();
    assert!((600..=3700).contains(&life), "{life} s");
    assert!(!cluster.agents_say(5000).contains(token.as_str()));

    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": { "token": token, "audiences": ["sts.amazonaws.com"] },
    });
    let path = cluster.dir().join("review.json");
    std::fs::write(&path, review.to_string()).unwrap();
    let answer = kubectl(&["create", "--output", "json", "--filename", path.to_str().unwrap()]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
    assert_eq!(
        answer["status"]["user"]["username"],
        "system:serviceaccount:metaproxy-test:web"
    );

    // An annotation requests another audience.
    account(
        "other",
        json!({
            "eks.amazonaws.com/role-arn": format!("{BASE}of-other-account"),
            "eks.amazonaws.com/audience": "another",
        }),
    );
    let other = cluster.pod("with-other", json!({}), json!({ "serviceAccountName": "other" }));
    assert!(other.has_credentials_of("of-other-account"));
    let calls = calls_for(cluster, "of-other-account");
    assert_eq!(
        self::claims(calls[0].web_identity.as_ref().unwrap())["aud"],
        json!(["another"])
    );
}

/// Checks that a pod gets nothing after its service account has lost the annotation.
pub fn without_the_annotation(cluster: &Cluster) {
    cluster.permit(".*");
    account(
        "losing",
        json!({ "eks.amazonaws.com/role-arn": format!("{BASE}to-lose") }),
    );
    let pod = cluster.pod("losing", json!({}), json!({ "serviceAccountName": "losing" }));
    assert!(pod.has_credentials_of("to-lose"));
    cluster.annotate("serviceaccount", "losing", "eks.amazonaws.com/role-arn-");
    within(std::time::Duration::from_secs(1), "a role that is gone", || {
        pod.role() == "status 404"
    });
    cluster.annotate(
        "serviceaccount",
        "losing",
        &format!("eks.amazonaws.com/role-arn={BASE}regained"),
    );
    eventually("the next role", || pod.role() == "regained");
    assert!(pod.has_credentials_of("regained"));
    // A hostNetwork pod has its service account's role too.
    let host = cluster.pod(
        "host-account",
        json!({}),
        json!({ "serviceAccountName": "losing", "hostNetwork": true }),
    );
    host.until_role("regained");
}
