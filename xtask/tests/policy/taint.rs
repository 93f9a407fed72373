//! Tests which fields of nodes the agent may patch.

use serde_json::{Value as Json, json};

use super::{Policy, holds, holds_of_change, policy, request};

const AGENT: &str = "system:serviceaccount:kube-system:metaproxy";
const KEY: &str = "metaproxy/agent-not-ready";

fn taint(key: &str) -> Json {
    json!({ "key": key, "value": "true", "effect": "NoSchedule" })
}

/// Returns a node that has just been registered.
fn node() -> Json {
    json!({
        "metadata": {
            "name": "n1", "uid": "u1", "resourceVersion": "1",
            "labels": { "kubernetes.io/hostname": "n1" },
            "annotations": { "node.alpha.kubernetes.io/ttl": "0" },
        },
        "spec": {
            "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "providerID": "aws:///a/i-0",
            "taints": [taint("dedicated"), taint(KEY)],
        },
    })
}

/// Returns the node with one field replaced, or removed if the value is null.
fn with(pointer: &str, field: Json) -> Json {
    let mut object = node();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let parent = object.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    if field.is_null() {
        parent.remove(name);
    } else {
        parent.insert(name.to_owned(), field);
    }
    object
}

fn untainted() -> Json {
    with("/spec/taints", json!([taint("dedicated")]))
}

/// Returns a request with a pod's token. From Kubernetes 1.30 on, the token names the pod's node.
fn of_pod_on(node: Option<&str>) -> Json {
    let mut request = request(AGENT);
    let pod = json!({ "authentication.kubernetes.io/pod-name": ["metaproxy-x"] });
    request["userInfo"]["extra"] = pod;
    if let Some(node) = node {
        request["userInfo"]["extra"]["authentication.kubernetes.io/node-name"] = json!([node]);
    }
    request
}

fn passes(policy: &Policy, old: &Json, new: &Json, request: &Json) -> bool {
    let mut validations = policy.validations.iter();
    validations.all(|expression| holds_of_change(expression, old, new, request))
}

#[test]
fn the_taints_policy_is_about_the_agents_own_account_and_no_other() {
    let policy = policy("metaproxy-taint");
    assert!(holds(&policy.condition, &node(), &request(AGENT)));
    for other in [
        "system:node:n1",
        "admin",
        "system:serviceaccount:default:metaproxy",
    ] {
        assert!(!holds(&policy.condition, &node(), &request(other)), "{other}");
    }
}

#[test]
fn the_agent_may_remove_the_startup_taint_and_nothing_else() {
    let policy = policy("metaproxy-taint");
    let may = |new: &Json| passes(&policy, &node(), new, &of_pod_on(Some("n1")));
    assert!(may(&untainted()));
    assert!(may(&node()), "a change of nothing");
    assert!(
        may(&with("/spec/taints", json!([taint(KEY), taint("dedicated")]))),
        "another order"
    );
    let only = with("/spec/taints", json!([taint(KEY)]));
    let none = with("/spec/taints", Json::Null);
    assert!(
        passes(&policy, &only, &none, &of_pod_on(Some("n1"))),
        "the only taint"
    );
    let changed = |mut taint: Json| {
        taint["effect"] = json!("PreferNoSchedule");
        taint
    };
    for (pointer, field) in [
        ("/spec/taints", Json::Null),
        ("/spec/taints", json!([])),
        ("/spec/taints", json!([taint(KEY)])),
        (
            "/spec/taints",
            json!([taint("dedicated"), taint(KEY), taint("new")]),
        ),
        ("/spec/taints", json!([changed(taint("dedicated"))])),
        ("/spec/taints", json!([taint("dedicated"), changed(taint(KEY))])),
        ("/spec/unschedulable", json!(true)),
        ("/spec/podCIDR", json!("10.0.0.0/24")),
        ("/spec/podCIDRs", json!([])),
        ("/spec/providerID", Json::Null),
        ("/spec/externalID", json!("x")),
        ("/spec/configSource", json!({ "configMap": {} })),
        (
            "/metadata/labels",
            json!({ "kubernetes.io/hostname": "n1", "role": "control-plane" }),
        ),
        ("/metadata/labels", Json::Null),
        ("/metadata/annotations", json!({})),
        ("/metadata/finalizers", json!(["a/b"])),
        ("/metadata/ownerReferences", json!([{ "kind": "Pod" }])),
    ] {
        assert!(!may(&with(pointer, field.clone())), "{pointer} = {field}");
    }
}

#[test]
fn a_token_that_names_its_node_is_good_for_that_node_only() {
    let policy = policy("metaproxy-taint");
    let may = |request: &Json| passes(&policy, &node(), &untainted(), request);
    assert!(may(&of_pod_on(Some("n1"))));
    assert!(!may(&of_pod_on(Some("n2"))));
    assert!(may(&of_pod_on(None)), "a token before Kubernetes 1.30");
    assert!(may(&request(AGENT)), "a token that is bound to no pod");
}
