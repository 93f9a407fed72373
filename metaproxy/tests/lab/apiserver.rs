//! Tests with a fake API server that fails on request, and with the real programs and pods of the lab.
//! `cargo xtask test --cluster` uses a real API server.

use std::time::Duration;

use crate::common::cluster::{NODE, TAINT, cluster, has};
use crate::common::sessions::{ROLE, document, document_is_good};
use crate::common::{counts, eventually, eventually_within, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::apiserver::Behaviour;
use metaproxy_lab::pod::Pod;
use serde_json::{Value, json};

#[test]
fn pods_are_added_changed_and_removed_and_only_those_of_this_node_are_requested() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let _agent = cluster.agent(&[]);
    assert!(has(&a, "role-a") && document_is_good(&a, "role-a"));
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    eventually("the other role", || has(&a, "role-b"));
    cluster.put("a", &a, json!({}));
    eventually("none", || has(&a, "status 404"));
    cluster.api.delete("pods", "apps", "a");
    eventually("no pod has a role", || has(&a, "status 503"));
    let requests = cluster.api.requests();
    let lists = requests
        .iter()
        .filter(|request| request.contains("/api/v1/pods?"));
    assert!(
        lists
            .clone()
            .all(|list| list.contains("fieldSelector=spec.nodeName%3Dnode1")),
        "{requests:?}"
    );
    assert!(
        lists.clone().any(|list| list.contains("resourceVersion=0&")),
        "from memory: {requests:?}"
    );
    assert!(
        !requests
            .iter()
            .any(|request| request.contains("namespaces") || request.contains("serviceaccounts")),
        "namespaces are not read (--namespace-policy=off): {requests:?}"
    );
}

/// Any user with the right to create pods can write the annotations of a mirror pod, but not its status.
#[test]
fn a_forged_mirror_pod_neither_denies_a_static_pod_its_role_nor_gives_it_another() {
    const HASH: &str = "0123456789abcdef0123456789abcdef";
    let Some(cluster) = cluster() else { return };
    let beside = cluster.pod("beside");
    let cgroup = cluster.node.lab.kubepods().join(format!("pod{HASH}/c0ffee"));
    std::fs::create_dir_all(&cgroup).unwrap();
    let of_hash = Pod::of_cluster("static", HASH, cgroup, beside.netns().unwrap()).unwrap();
    let mirror = |name: &str, role: &str, status: Value| {
        let object = json!({
            "metadata": {
                "name": name, "namespace": "apps", "uid": name,
                "annotations": {
                    "kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH, ROLE: role,
                },
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": NODE, "uid": "n", "controller": true },
                ],
            },
            "spec": { "nodeName": NODE, "containers": [] },
            "status": status,
        });
        cluster.api.put("pods", object);
    };
    let _agent = cluster.agent(&[]);
    mirror("forged", "role-of-thief", json!({ "phase": "Pending" }));
    assert!(has(&of_hash, "status 503"), "no kubelet vouches for it");
    mirror(
        "static",
        "role-a",
        json!({ "phase": "Running", "startTime": "2026-01-01T00:00:00Z" }),
    );
    eventually("its own role", || has(&of_hash, "role-a"));
    // The watch delivers changes in order. When a later change has an effect, the earlier one has been seen.
    mirror("forged", "another-of-thief", json!({ "phase": "Pending" }));
    let last = cluster.with_role("last", "role-b");
    eventually("the change", || has(&last, "role-b"));
    assert!(has(&of_hash, "role-a"));
    assert!(document_is_good(&of_hash, "role-a"));
}

#[test]
fn a_request_of_an_unknown_pod_is_answered_as_soon_as_the_pod_is_known() {
    let Some(cluster) = cluster() else { return };
    let _agent = cluster.agent(&[]);
    let a = cluster.pod("a");
    let asking = start_dial(&a, &["--count", "20", "--threads", "20"]);
    std::thread::sleep(Duration::from_millis(300));
    cluster.put("a", &a, json!({ ROLE: "role-a" }));
    assert_eq!(outcomes(asking), counts([("role-a", 20)]));
}

#[test]
fn sessions_are_obtained_before_the_first_request_but_not_for_finished_pods() {
    let Some(cluster) = cluster() else { return };
    let done = cluster.pod("done");
    cluster.api.put(
        "pods",
        json!({
            "metadata": { "name": "done", "namespace": "apps", "uid": done.uid(), "annotations": { ROLE: "role-done" } },
            "spec": { "nodeName": NODE, "containers": [] },
            "status": { "phase": "Succeeded" },
        }),
    );
    let _agent = cluster.agent(&[]);
    let _a = cluster.with_role("a", "role-a");
    eventually("a session", || {
        cluster
            .node
            .sts
            .calls()
            .iter()
            .any(|call| call.role.ends_with("/role-a"))
    });
    assert!(
        !cluster
            .node
            .sts
            .calls()
            .iter()
            .any(|call| call.role.ends_with("/role-done"))
    );
    // A process that still runs is served, whatever the pod's phase is.
    assert!(document_is_good(&done, "role-done"));
}

#[test]
fn missing_permissions_are_reported_until_they_are_granted() {
    let Some(cluster) = cluster() else { return };
    let denied = |names: &[&str]| Behaviour {
        denied: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Behaviour::default()
    };
    cluster
        .api
        .behave(denied(&["list pods", "create serviceaccounts/token"]));
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&["--web-identity", "on"])).unwrap();
    agent
        .wait_for("permissions: this service account may not list pods, nor create serviceaccounts/token;")
        .unwrap();
    eventually("a report", || {
        cluster.reports("[-]permissions failed: this service account may not list pods")
    });
    assert!(
        cluster.reports("[-]pods failed: since") && cluster.reports("pods is forbidden"),
        "{}",
        cluster.report().1
    );
    cluster.api.behave(denied(&["create events.events.k8s.io"]));
    agent.wait_for(" ready ").unwrap();
    assert!(cluster.report().0, "pods are served: {}", cluster.report().1);
}

/// RBAC and admission may change while an agent runs. The agent checks its permissions again, and tries a token with
/// a dry run, which makes none.
#[test]
fn a_revoked_permission_and_a_token_that_admission_refuses_are_reported() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let _agent = cluster.agent(&["--web-identity", "on"]);
    assert!(has(&a, "role-a"));
    eventually("everything is allowed", || cluster.reports("[+]permissions ok"));
    let behaves = |behaviour: Behaviour, report: &str| {
        cluster.api.behave(behaviour);
        // A watch that breaks causes a check of the permissions.
        cluster.api.forget(Some(410));
        eventually_within(Duration::from_secs(15), report, || cluster.reports(report));
    };
    behaves(
        Behaviour {
            denied: ["create serviceaccounts/token".to_owned()].into(),
            ..Behaviour::default()
        },
        "[-]permissions failed: this service account may not create serviceaccounts/token",
    );
    assert!(!cluster.report().0, "not ready");
    behaves(Behaviour::default(), "[+]permissions ok");
    behaves(
        Behaviour {
            gives_no_token: true,
            ..Behaviour::default()
        },
        "[-]permissions failed: tokens of service accounts are allowed by RBAC and refused all the same, as a trial shows (service \
         account apps/web:",
    );
    behaves(Behaviour::default(), "[+]permissions ok");
    let tried = |request: &&String| request.contains("/token?") && request.contains("dryRun=All");
    assert!(cluster.api.requests().iter().find(tried).is_some());
    assert!(cluster.api.posted("/token").is_empty(), "none was made");
}

#[test]
fn a_service_accounts_role_is_assumed_with_its_token_which_is_neither_logged_nor_stored() {
    let Some(cluster) = cluster() else { return };
    let account = |annotations: Value| {
        cluster.api.put(
            "serviceaccounts",
            json!({ "metadata": { "name": "web", "namespace": "apps", "annotations": annotations } }),
        );
    };
    account(json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/of-account" }));
    let a = cluster.pod("a");
    cluster.put("a", &a, json!({}));
    let agent = cluster.agent(&["--web-identity", "on", "--log", "trace"]);
    assert!(document_is_good(&a, "of-account"));
    let calls = cluster.node.sts.calls();
    let call = calls
        .iter()
        .find(|call| call.role.ends_with("/of-account"))
        .unwrap();
    assert_eq!(call.web_identity.as_deref(), Some("token-of-a-service-account"));
    assert_eq!((call.session.as_str(), call.signed_by.as_str()), ("apps.a", ""));
    let asked = cluster
        .api
        .posted("/api/v1/namespaces/apps/serviceaccounts/web/token");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0]["spec"],
        json!({
            "audiences": ["sts.amazonaws.com"],
            "expirationSeconds": 600,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": a.uid() },
        })
    );
    assert!(
        !agent.logged().contains("token-of-a-service-account"),
        "{}",
        agent.logged()
    );
    let remembered =
        std::fs::read_to_string(cluster.node.lab.dir().join("run/pods.json")).unwrap_or_default();
    assert!(!remembered.contains("token-of"), "{remembered}");
    // Without a token there is no session, and the answer says why.
    cluster.api.behave(Behaviour {
        gives_no_token: true,
        ..Behaviour::default()
    });
    account(json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/another" }));
    eventually("the other role", || has(&a, "another"));
    let answer = document(&a, "another").json();
    assert_eq!(answer["Code"], "AssumeRoleUnauthorizedAccess");
    let message = answer["Message"].as_str().unwrap();
    let want = "the API server refuses a token for service account apps/web: ";
    assert!(
        message.contains(want) && message.contains("no tokens today; "),
        "{message}"
    );
    eventually("an event", || {
        cluster
            .api
            .posted("/events")
            .iter()
            .any(|event| event["note"] == message)
    });
    account(json!({}));
    eventually("none", || has(&a, "status 404"));
}

/// helm creates the policy after the RBAC rules, and the API server needs a second to apply it.
#[test]
fn no_token_is_created_before_the_required_policy_limits_audiences() {
    let Some(cluster) = cluster() else { return };
    let role = json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/of-account" });
    cluster.api.put(
        "serviceaccounts",
        json!({ "metadata": { "name": "web", "namespace": "apps", "annotations": role } }),
    );
    let a = cluster.pod("a");
    cluster.put("a", &a, json!({}));
    let spec = cluster.spec(&["--web-identity", "on", "--token-policy", "required"]);
    let agent = Agent::spawn(&cluster.node.lab, &spec).unwrap();
    agent.wait_for("attached to the pods' cgroup").unwrap();
    let nothing =
        "[-]permissions failed: no tokens of service accounts are asked for: nothing limits their audience";
    eventually("a report", || cluster.reports(nothing));
    assert_eq!(document(&a, "of-account").status, 503);
    assert!(cluster.api.posted("/token").is_empty(), "none was made");
    let tried = |request: &String| request.contains("/token?") && request.contains("dryRun=All");
    assert!(cluster.api.requests().iter().any(tried));
    cluster.api.behave(Behaviour {
        limits_audiences: true,
        ..Behaviour::default()
    });
    let served = || document(&a, "of-account").status == 200;
    eventually_within(Duration::from_secs(15), "its role", served);
    assert!(document_is_good(&a, "of-account"));
    assert_eq!(cluster.api.posted("/token").len(), 1);
    eventually_within(Duration::from_secs(15), "a report", || {
        cluster.reports("[+]permissions ok")
    });
}

#[test]
fn a_refusal_is_reported_to_the_pods_owner_once() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "not a role");
    let agent = cluster.agent(&[]);
    eventually("an event", || cluster.api.posted("/events").len() == 1);
    for _ in 0..20 {
        document(&a, "notarole");
    }
    // Another annotation of the pod changes, so the decision is made again.
    cluster.put(
        "a",
        &a,
        json!({ ROLE: "not a role", "iam.amazonaws.com/external-id": "id-1" }),
    );
    // Events are sent one after the other. The event of a later change comes after all events that this change has
    // caused.
    let later = cluster.with_role("later", "no role either");
    let of = |pod: &Pod| -> Vec<Value> {
        let events = cluster.api.posted("/events").into_iter();
        events
            .filter(|event| event["regarding"]["uid"] == pod.uid())
            .collect()
    };
    eventually("an event of the later one", || of(&later).len() == 1);
    let events = of(&a);
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!(event["regarding"]["uid"], a.uid());
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("RoleRefused"), &json!("Warning"))
    );
    let message = document(&a, "notarole").json()["Message"].clone();
    assert_eq!(event["note"], message, "the same sentence");
    // A refusal by STS is reported in the same way.
    cluster.node.sts.behave(metaproxy_lab::sts::Behaviour {
        denies: Some("denied"),
        ..metaproxy_lab::sts::Behaviour::default()
    });
    cluster.put("a", &a, json!({ ROLE: "denied" }));
    eventually("STS's refusal", || {
        document(&a, "denied").json()["Code"] == "AssumeRoleUnauthorizedAccess"
    });
    eventually("another event", || of(&a).len() == 2);
    // A restarted agent reports no event again, because it finds the old events in the API server.
    cluster.api.delete("pods", "apps", "later");
    drop(agent);
    let asked = || {
        let requests = cluster.api.requests();
        requests
            .iter()
            .filter(|request| request.contains("/events?"))
            .count()
    };
    let before = asked();
    let _again = cluster.agent(&[]);
    eventually("STS's refusal once more", || {
        document(&a, "denied").json()["Code"] == "AssumeRoleUnauthorizedAccess"
    });
    eventually("a request for an event", || asked() > before);
    assert_eq!(of(&a).len(), 2);
}

/// Karpenter registers a node with its startup taints. If a taint was removed before that, Karpenter can add it
/// again.
#[test]
fn a_startup_taint_that_is_added_again_is_removed_again() {
    let Some(cluster) = cluster() else { return };
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    let tainted =
        || json!({ "metadata": { "name": NODE }, "spec": { "taints": [taint("other"), taint(TAINT)] } });
    cluster.api.put("nodes", tainted());
    let agent = cluster.agent(&["--startup-taint", TAINT]);
    for turn in 1..=3 {
        agent.wait_for_nth("removed the startup taint", turn).unwrap();
        let taints = cluster.api.object("nodes", "/node1")["spec"]["taints"].clone();
        assert_eq!(taints, json!([taint("other")]));
        assert!(cluster.reports("[+]startup-taint ok"));
        cluster.api.put("nodes", tainted());
    }
    agent.wait_for_nth("removed the startup taint", 4).unwrap();
    // A node without the taint is not patched.
    let patches = cluster.api.posted("/nodes/node1").len();
    let reads = || {
        let requests = cluster.api.requests();
        requests
            .iter()
            .filter(|request| request.starts_with("GET /api/v1/nodes/"))
            .count()
    };
    let before = reads();
    eventually("another look", || reads() > before);
    assert_eq!(cluster.api.posted("/nodes/node1").len(), patches);
}

#[test]
fn a_watch_that_works_again_is_reported() {
    let Some(mut cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let agent = cluster.agent(&[]);
    assert!(has(&a, "role-a"));
    cluster.api.go_away();
    cluster.api.forget(None);
    agent
        .wait_for("watching pods has failed, and is tried again")
        .unwrap();
    cluster.api.come_back().unwrap();
    agent.wait_for("watching pods works again").unwrap();
    // The recovery is also reported if the first event after it is a change of a pod.
    cluster.api.behave(Behaviour {
        watches: Some(500),
        ..Behaviour::default()
    });
    cluster.api.forget(Some(500));
    agent
        .wait_for_nth("watching pods has failed, and is tried again", 2)
        .unwrap();
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    cluster.api.behave(Behaviour::default());
    agent.wait_for_nth("watching pods works again", 2).unwrap();
    eventually("the other role", || has(&a, "role-b"));
}

#[test]
fn only_the_startup_taint_is_removed_and_only_once_pods_are_served() {
    let Some(cluster) = cluster() else { return };
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    cluster.api.put(
        "nodes",
        json!({ "metadata": { "name": NODE }, "spec": { "taints": [taint("other"), taint(TAINT)] } }),
    );
    cluster.api.behave(Behaviour {
        denied: ["list pods".to_owned()].into(),
        ..Behaviour::default()
    });
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&["--startup-taint", TAINT])).unwrap();
    agent.wait_for("attached to the pods' cgroup").unwrap();
    // Two more attempts show that everything that the agent does at its start is done.
    let lists = || {
        let requests = cluster.api.requests();
        requests
            .iter()
            .filter(|request| request.contains("/pods?"))
            .count()
    };
    let before = lists();
    eventually_within(Duration::from_secs(15), "two more attempts", || {
        lists() >= before + 2
    });
    let taints = || cluster.api.object("nodes", "/node1")["spec"]["taints"].clone();
    assert_eq!(
        taints(),
        json!([taint("other"), taint(TAINT)]),
        "pods are not served yet"
    );
    cluster.api.behave(Behaviour::default());
    agent.wait_for("removed the startup taint").unwrap();
    assert_eq!(taints(), json!([taint("other")]));
    let patches = cluster.api.posted("/nodes/node1");
    assert!(
        patches[0]["metadata"]["resourceVersion"].is_string(),
        "only if no other client changed it meanwhile: {patches:?}"
    );
    eventually("a report", || cluster.reports("[+]startup-taint ok"));
}

/// deploy/docs/install.md names the files that may be removed with metaproxy.
#[test]
fn the_files_that_stay_in_the_runtime_directory_are_those_that_the_guide_names() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let mut guard = cluster.node.closed_guard();
    let mut agent = cluster.agent(&[]);
    assert!(has(&a, "role-a"));
    let files = || {
        let entries = std::fs::read_dir(cluster.node.lab.runtime_dir()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
        names.collect::<std::collections::BTreeSet<String>>()
    };
    eventually("what is known of the pods is written", || {
        files().contains("pods.json")
    });
    assert!(agent.stop().unwrap().success() && guard.stop().unwrap().success());
    let guide = std::fs::read_to_string(crate::common::deployed::deploy("docs/install.md")).unwrap();
    let (_, section) = guide.split_once("## Removing it\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let left = files();
    assert_eq!(left.len(), 3, "{left:?}");
    for name in left {
        assert!(section.contains(&format!("`{name}`")), "{name} in {section}");
    }
}

#[test]
fn invalid_objects_are_ignored_and_other_pods_are_not_affected() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.put("pods", json!({ "metadata": { "name": "no-uid", "namespace": "apps" }, "spec": { "nodeName": NODE, "containers": [] } }));
    cluster.api.put("pods", json!({ "metadata": { "name": "odd", "namespace": "apps", "uid": "../.." }, "spec": { "nodeName": NODE, "containers": [] } }));
    let agent = cluster.agent(&[]);
    agent.wait_for("pod apps/no-uid has no metadata.uid").unwrap();
    agent.wait_for("pod apps/odd: metadata.uid").unwrap();
    assert!(document_is_good(&a, "role-a"));
}
