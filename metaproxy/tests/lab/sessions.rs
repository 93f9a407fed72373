//! Roles and sessions over real sockets: the answers to pods, and the calls to STS.

use crate::common::http::{LIST, get};
use crate::common::sessions::{ROLE, document, document_is_good, start};
use crate::common::{counts, dial, eventually, node};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::{Pod, PodSpec};
use metaproxy_lab::sts::{Behaviour, FakeSts};

fn annotated(name: &'static str, annotations: &[(&str, &str)]) -> PodSpec {
    let annotations = annotations
        .iter()
        .map(|(key, value)| (format!("iam.amazonaws.com/{key}"), (*value).to_owned()));
    PodSpec {
        annotations: annotations.collect(),
        ..PodSpec::without_role(name)
    }
}

#[test]
fn a_role_is_refused_with_the_reason_until_the_namespace_permits_it() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let namespace = |annotations: &str| {
        node.lab
            .manifest(
                "namespace.yaml",
                &format!("kind: Namespace\nmetadata: {{name: apps, annotations: {{{annotations}}}}}\n"),
            )
            .unwrap();
    };
    let spec = AgentSpec {
        flags: ["--sts-endpoint", &FakeSts::url()].map(str::to_owned).to_vec(),
        ..node.spec()
    };
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    assert_eq!(
        dial(&a, &[]),
        counts([("status 503", 1)]),
        "the namespace is not known yet"
    );
    namespace("");
    eventually("it is refused", || dial(&a, &[]) == counts([("role-a", 1)]));
    let refused = document(&a, "role-a");
    assert_eq!(
        (refused.status, &refused.json()["Code"]),
        (200, &"AssumeRoleUnauthorizedAccess".into())
    );
    assert!(refused.body.contains("--namespace-policy"), "{}", refused.body);
    assert_eq!(node.sts.calls(), []);
    namespace("iam.amazonaws.com/permitted: 'role-.*'");
    eventually("it is permitted", || document(&a, "role-a").body.contains("ASIA"));
    namespace("iam.amazonaws.com/allowed-roles: '[\"other\"]'");
    eventually("it is refused again", || {
        document(&a, "role-a").body.contains("does not allow it")
    });
}

#[test]
fn a_role_that_changes_while_the_pod_runs_is_replaced_at_once() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-old")).unwrap();
    let _agent = node.agent();
    assert_eq!(get(&a, LIST).body, "role-old");
    assert!(document(&a, "role-old").body.contains("secret-of-role-old"));
    for (old, new) in [("role-old", "role-new"), ("role-new", "role-old")] {
        a.write_manifest(&[(ROLE.to_owned(), new.to_owned())]).unwrap();
        eventually("the list gives the new one", || get(&a, LIST).body == new);
        for extended in ["", "-extended"] {
            let at = |role: &str| {
                get(
                    &a,
                    &format!("/latest/meta-data/iam/security-credentials{extended}/{role}"),
                )
            };
            assert_eq!(at(old).status, 404, "the old one from that moment on");
            assert_eq!(at(new).json()["SecretAccessKey"], format!("secret-of-{new}"));
        }
    }
    let roles: Vec<String> = node.sts.calls().into_iter().map(|call| call.role).collect();
    let arn = |name: &str| format!("arn:aws:iam::123456789012:role/{name}");
    assert_eq!(
        roles,
        [arn("role-old"), arn("role-new"), arn("role-old")],
        "nothing is kept of a role that is gone"
    );
}

#[test]
fn all_session_parameters_reach_sts_and_only_equal_sessions_are_shared() {
    let Some(node) = node() else { return };
    node.lab.pod(annotated("plain", &[("role", "role-a")])).unwrap();
    node.lab
        .pod(annotated("id", &[("role", "role-a"), ("external-id", "acme/42")]))
        .unwrap();
    node.lab
        .pod(annotated(
            "named",
            &[("role", "role-a"), ("session-name", "my session")],
        ))
        .unwrap();
    {
        let _agent = start(&node, &["--session-duration", "30m"]);
        eventually("each has its own", || node.sts.calls().len() == 3);
        let mut calls = node.sts.calls();
        calls.sort_by(|one, other| one.session.cmp(&other.session));
        let sessions: Vec<_> = calls
            .iter()
            .map(|call| (call.session.as_str(), call.external_id.as_deref()))
            .collect();
        assert_eq!(
            sessions,
            [
                ("apps.id", Some("acme/42")),
                ("apps.plain", None),
                ("my-session", None)
            ]
        );
        assert!(
            calls
                .iter()
                .all(|call| call.duration.as_deref() == Some("1800") && call.tags.is_empty())
        );
        assert!(calls.iter().all(|call| call.signed_by == "AKIANODE"));
    }
    let before = node.sts.calls().len();
    let twin = node.lab.pod(annotated("twin", &[("role", "role-a")])).unwrap();
    {
        let _agent = start(&node, &["--session-scope", "role", "--node-name", "node-1"]);
        eventually("twins share one", || node.sts.calls().len() == before + 3);
        assert!(document_is_good(&twin, "role-a"));
        let calls = node.sts.calls().split_off(before);
        assert_eq!(calls.len(), 3);
        assert!(
            calls
                .iter()
                .any(|call| call.session == "metaproxy.node-1" && call.external_id.is_none()),
            "{calls:?}"
        );
    }
    let before = node.sts.calls().len();
    let flags = [
        "--session-tags",
        "on",
        "--cluster-name",
        "blue",
        "--node-name",
        "node-1",
        "--session-scope",
        "role",
    ];
    let _agent = start(&node, &flags);
    eventually("tags are not shared", || node.sts.calls().len() == before + 4);
    let calls = node.sts.calls().split_off(before);
    let twin = calls
        .iter()
        .find(|call| call.tags.iter().any(|(_, value)| value == "twin"))
        .unwrap();
    let tags: Vec<_> = twin
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let want = [
        ("kubernetes-cluster-name", "blue"),
        ("kubernetes-namespace", "apps"),
        ("kubernetes-node-name", "node-1"),
        ("kubernetes-pod-name", "twin"),
        ("kubernetes-service-account", "default"),
    ];
    assert_eq!(tags, want);
    assert!(twin.transitive_tags.is_empty(), "{twin:?}");
}

#[test]
fn with_the_tags_of_eks_pod_identity_sts_gets_its_six_keys_as_transitive_tags() {
    const CLUSTER: &str = "arn:aws:eks:eu-west-1:123456789012:cluster/blue";
    let Some(node) = node() else { return };
    let pod = node.lab.pod(annotated("a", &[("role", "role-a")])).unwrap();
    let _agent = start(&node, &["--session-tags", "eks", "--cluster-arn", CLUSTER]);
    eventually("its session is fetched ahead", || node.sts.calls().len() == 1);
    let call = node.sts.calls().remove(0);
    let tags: Vec<_> = call
        .tags
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let want = [
        ("eks-cluster-arn", CLUSTER),
        ("eks-cluster-name", "blue"),
        ("kubernetes-namespace", "apps"),
        ("kubernetes-pod-name", "a"),
        ("kubernetes-pod-uid", pod.uid()),
        ("kubernetes-service-account", "default"),
    ];
    assert_eq!(tags, want);
    assert_eq!(call.transitive_tags, want.map(|(key, _)| key));
}

#[test]
fn the_role_that_is_assumed_first_assumes_all_others() {
    let Some(node) = node() else { return };
    let pods: Vec<Pod> = ["role-a", "role-b", "role-c"]
        .into_iter()
        .zip(["a", "b", "c"])
        .map(|(role, name)| node.lab.pod(PodSpec::with_role(name, role)).unwrap())
        .collect();
    let server = "arn:aws:iam::123456789012:role/kiam-server";
    {
        let _agent = start(&node, &["--assume-role-arn", server, "--node-name", "node-1"]);
        assert!(document_is_good(&pods[0], "role-a") && document_is_good(&pods[2], "role-c"));
        eventually("all three", || node.sts.calls().len() == 4);
        let mut calls = node.sts.calls();
        let first = calls.remove(0);
        assert_eq!(
            (first.role.as_str(), first.session.as_str()),
            (server, "metaproxy.node-1")
        );
        assert_eq!(
            (first.signed_by.as_str(), first.duration.as_deref()),
            ("AKIANODE", Some("3600"))
        );
        assert!(
            calls.iter().all(|call| call.signed_by == "ASIA0000kiam-server"),
            "{calls:?}"
        );
    }
    // If that role is denied, each pod gets the reason, and STS is called once.
    node.sts.behave(Behaviour {
        denies: Some("kiam"),
        ..Behaviour::default()
    });
    let before = node.sts.calls().len();
    let _agent = start(&node, &["--assume-role-arn", server]);
    for (pod, role) in pods.iter().zip(["role-a", "role-b", "role-c"]) {
        let told = document(pod, role);
        assert!(
            told.body.contains("--assume-role-arn") && told.body.contains("AccessDenied"),
            "{told:?}"
        );
    }
    assert_eq!(node.sts.calls().len(), before + 1);
}

#[test]
fn invalid_input_affects_only_its_own_pod() {
    let Some(node) = node() else { return };
    let catastrophic = "(a+)+$|((a|aa)+)+b|(.*.*)*c";
    node.lab
        .manifest(
            "namespace.yaml",
            &format!(
                "kind: Namespace\nmetadata: {{name: apps, annotations: {{iam.amazonaws.com/permitted: '{catastrophic}|role-.*|a*'}}}}\n\
                 ---\nkind: Namespace\nmetadata: {{name: broken, annotations: {{iam.amazonaws.com/allowed-roles: '[\"role-a\"'}}}}\n"
            ),
        )
        .unwrap();
    let fine = node.lab.pod(PodSpec::with_role("fine", "role-fine")).unwrap();
    let long = "a".repeat(64);
    let cases = [
        (
            "arn",
            annotated("arn", &[("role", "arn:aws:iam::12:role/x")]),
            "12 digits",
        ),
        (
            "name",
            annotated("name", &[("role", "no such <role>")]),
            "1 to 64 letters",
        ),
        (
            "id",
            annotated("id", &[("role", "role-x"), ("external-id", "a b")]),
            "external-id",
        ),
        (
            "backtracking",
            annotated("backtracking", &[("role", &format!("{}/x", "a/".repeat(200)))]),
            "names the role",
        ),
        (
            "json",
            PodSpec {
                namespace: "broken",
                ..PodSpec::with_role("json", "role-a")
            },
            "it is not a JSON list of strings",
        ),
        (
            "session",
            annotated(
                "session",
                &[("role", "role-s"), ("session-name", "\u{e9} <\u{7}>")],
            ),
            "ASIA",
        ),
        (
            "unpermitted",
            annotated("unpermitted", &[("role", "other")]),
            "not permitted",
        ),
    ];
    let pods: Vec<(Pod, &str)> = cases
        .into_iter()
        .map(|(_, spec, want)| (node.lab.pod(spec).unwrap(), want))
        .collect();
    let slow = node.lab.pod(annotated("slow", &[("role", &long)])).unwrap();
    let spec = AgentSpec {
        flags: ["--sts-endpoint", &FakeSts::url()].map(str::to_owned).to_vec(),
        ..node.spec()
    };
    let agent = Agent::start(&node.lab, &spec).unwrap();
    assert!(document_is_good(&fine, "role-fine"));
    for (pod, want) in &pods {
        let list = get(pod, LIST);
        assert_eq!(list.status, 200, "{list:?}");
        let told = document(pod, &list.body);
        let is_refused = told.json()["Code"] == "AssumeRoleUnauthorizedAccess";
        assert_eq!(is_refused, *want != "ASIA", "{told:?}");
        assert!(told.body.contains(want), "{told:?}");
        assert!(document_is_good(&fine, "role-fine"));
    }
    assert!(document(&slow, &long).status == 200, "matched in linear time");
    // One file is not a valid manifest, and one is not text.
    node.lab
        .manifest("broken.yaml", "kind: Pod\nmetadata: [")
        .unwrap();
    std::fs::write(node.lab.manifests().join("bytes.json"), [0xff, 0xfe, 0, 1]).unwrap();
    agent.wait_for("broken.yaml").unwrap();
    agent.wait_for("bytes.json").unwrap();
    assert!(document_is_good(&fine, "role-fine"));
}
