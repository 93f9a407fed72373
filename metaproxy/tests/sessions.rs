//! Roles and sessions over real sockets: who gets what, and how often STS is asked, whatever STS does.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::time::{Duration, Instant};

use common::http::{LIST, Response, get, request, timed_exchange};
use common::{Node, counts, dial, eventually, node, node_with_sts, outcomes, start_dial};
use rstest::rstest;
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::pod::{Pod, PodSpec};
use xtask::lab::sts::{Behaviour, FakeSts};

const ROLE: &str = "iam.amazonaws.com/role";

fn annotated(name: &'static str, annotations: &[(&str, &str)]) -> PodSpec {
    let annotations = annotations
        .iter()
        .map(|(key, value)| (format!("iam.amazonaws.com/{key}"), (*value).to_owned()));
    PodSpec {
        annotations: annotations.collect(),
        ..PodSpec::without_role(name)
    }
}

fn start(node: &Node, flags: &[&str]) -> Agent {
    Agent::start(&node.lab, &node.spec().with(flags)).unwrap()
}

fn document(pod: &Pod, role: &str) -> Response {
    get(pod, &format!("{LIST}{role}"))
}

/// What every answer keeps, in seconds; SDKs give up after one.
const IN_TIME: f64 = 0.9;

/// Asks for the list and the document, sixteen times each at once; each must come in time. One of each.
fn in_time(pod: &Pod, role: &str) -> (Response, Response) {
    let document = format!("{LIST}{role}");
    let requests: Vec<[String; 1]> = [LIST, &document]
        .into_iter()
        .cycle()
        .take(32)
        .map(|path| [request("GET", path, "")])
        .collect();
    let mut answers = timed_exchange(pod, &requests, 3.0)
        .into_iter()
        .map(|(answer, took)| {
            assert!(took <= IN_TIME, "{took} s for {answer}");
            Response::parse(&answer).unwrap()
        });
    (answers.next().unwrap(), answers.next().unwrap())
}

#[test]
fn five_hundred_that_ask_at_once_for_a_session_that_is_not_there_cost_one_call() {
    let Some(node) = node_with_sts(Duration::from_millis(150)) else {
        return;
    };
    let a = node
        .lab
        .pod(PodSpec {
            known: false,
            ..PodSpec::with_role("a", "role-a")
        })
        .unwrap();
    let _agent = node.agent();
    let path = format!("{LIST}role-a");
    let asking = start_dial(&a, &["--path", &path, "--count", "500", "--threads", "500"]);
    std::thread::sleep(Duration::from_millis(100));
    // They are all held, as the pod is not known yet; now it is.
    a.write_manifest(&[(ROLE.to_owned(), "role-a".to_owned())])
        .unwrap();
    let got = outcomes(asking);
    assert_eq!(got.values().sum::<usize>(), 500);
    assert_eq!(got.len(), 1, "all got the same document: {got:?}");
    assert!(
        got.keys().all(|document| document.contains("ASIA0000role-a")),
        "{got:?}"
    );
    assert_eq!(node.sts.calls().len(), 1);
}

#[test]
fn every_answer_comes_within_a_second_however_slow_sts_is() {
    let Some(node) = node_with_sts(Duration::from_secs(3)) else {
        return;
    };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    let path = format!("{LIST}role-a");
    assert_eq!(
        dial(&a, &[]),
        counts([("role-a", 1)]),
        "the list needs no session"
    );
    let (list, refused) = in_time(&a, "role-a");
    assert_eq!((list.status, refused.status), (200, 503));
    eventually("the call went on behind it", || {
        dial(&a, &["--path", &path])
            .keys()
            .any(|answer| answer.contains("ASIA"))
    });
    assert_eq!(node.sts.calls().len(), 1);
}

#[test]
fn a_role_that_the_namespace_does_not_permit_is_refused_with_the_reason_until_it_does() {
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
fn a_role_that_changes_in_mid_life_is_another_one_at_once() {
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

#[rstest]
#[case::down(Behaviour { fails: Some((500, "InternalFailure")), ..Behaviour::default() })]
#[case::unavailable(Behaviour { fails: Some((503, "ServiceUnavailable")), ..Behaviour::default() })]
#[case::throttling(Behaviour { fails: Some((400, "Throttling")), ..Behaviour::default() })]
#[case::expired_token_of_the_node(Behaviour { fails: Some((403, "ExpiredToken")), ..Behaviour::default() })]
#[case::expired(Behaviour { expiration: Some("2020-01-01T00:00:00Z".to_owned()), ..Behaviour::default() })]
#[case::nonsense(Behaviour { expiration: Some("tomorrow".to_owned()), ..Behaviour::default() })]
#[case::far_away(Behaviour { expiration: Some("2099-01-01T00:00:00Z".to_owned()), ..Behaviour::default() })]
#[case::slow(Behaviour { takes: Duration::from_secs(5), ..Behaviour::default() })]
fn while_sts_fails_the_pod_is_told_in_time_and_what_is_there_is_served(#[case] behaviour: Behaviour) {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    eventually("the session is there", || document(&a, "role-a").status == 200);
    node.sts.behave(behaviour);
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    eventually("the new pod is known", || get(&b, LIST).status == 200);
    for _ in 0..3 {
        let (list, document) = in_time(&b, "role-b");
        assert_eq!((list.status, list.body.as_str()), (200, "role-b"));
        assert_eq!(document.status, 503, "{document:?}");
        assert!(
            document
                .body
                .contains("no credentials for role arn:aws:iam::123456789012:role/role-b"),
            "{document:?}"
        );
        assert_eq!(document.header("retry-after"), Some("1"));
    }
    let (_, kept) = in_time(&a, "role-a");
    assert!(kept.body.contains("secret-of-role-a"), "{kept:?}");
    let calls = node.sts.calls().len();
    assert!(calls < 20, "backed off: {calls}");
    node.sts.behave(Behaviour::default());
    eventually("and all is well again", || {
        document(&b, "role-b").body.contains("secret-of-role-b")
    });
    assert!(!agent.said().contains("secret-of"), "{}", agent.said());
}

/// Longer than an SDK would wait, and for ever.
#[test]
fn an_sts_that_always_takes_five_seconds_gives_sessions_all_the_same() {
    let Some(node) = node_with_sts(Duration::from_secs(5)) else {
        return;
    };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = start(
        &node,
        &["--assume-role-arn", "arn:aws:iam::123456789012:role/server"],
    );
    assert_eq!(in_time(&a, "role-a").1.status, 503);
    let start = Instant::now();
    while document(&a, "role-a").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(node.sts.calls().len(), 2, "one for each role");
}

/// A request that waits for STS while the role is taken away.
#[test]
fn a_role_that_is_taken_away_while_a_request_waits_is_not_served_to_it() {
    const TAKES: Duration = Duration::from_millis(750);
    let Some(node) = node_with_sts(TAKES) else { return };
    let a = node.lab.pod(PodSpec::without_role("a")).unwrap();
    let _agent = node.agent();
    for round in 1..20 {
        let role = format!("role-{round}");
        let path = format!("{LIST}{role}");
        a.write_manifest(&[(ROLE.to_owned(), role)]).unwrap();
        eventually("STS is asked", || node.sts.calls().len() == round);
        let asked = Instant::now();
        let (answer, was_in_time) = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| get(&a, &path));
            std::thread::sleep(Duration::from_millis(200));
            a.write_manifest(&[]).unwrap();
            eventually("it has no role", || get(&a, LIST).status == 404);
            let was_in_time = asked.elapsed() < TAKES - Duration::from_millis(50);
            (waiting.join().unwrap(), was_in_time)
        });
        if was_in_time {
            assert_eq!(answer.status, 404, "{answer:?}");
            return;
        }
        // A busy machine: STS was quicker than we were.
    }
    panic!("STS was always quicker");
}

#[test]
fn a_denied_role_is_asked_for_once_and_says_so_and_its_neighbours_are_served() {
    let Some(node) = node() else { return };
    let denied = node.lab.pod(PodSpec::with_role("denied", "denied-role")).unwrap();
    let fine = node.lab.pod(PodSpec::with_role("fine", "role-fine")).unwrap();
    node.sts.behave(Behaviour {
        denies: Some("denied"),
        ..Behaviour::default()
    });
    let _agent = node.agent();
    let start = Instant::now();
    let mut asked = 0;
    while start.elapsed() < Duration::from_secs(6) {
        let (list, document) = in_time(&denied, "denied-role");
        assert_eq!((list.status, list.body.as_str()), (200, "denied-role"));
        let told = document.json();
        assert_eq!(
            (document.status, &told["Code"]),
            (200, &"AssumeRoleUnauthorizedAccess".into())
        );
        let message = told["Message"].as_str().unwrap();
        assert!(
            message.contains("AccessDenied") && message.contains("denied-role"),
            "{message}"
        );
        assert!(document_is_good(&fine, "role-fine"));
        asked += 1;
    }
    assert!(asked > 5);
    let calls = |role: &str| {
        node.sts
            .calls()
            .into_iter()
            .filter(|call| call.role.ends_with(role))
            .count()
    };
    assert_eq!((calls("denied-role"), calls("role-fine")), (1, 1));
    // Another role in the annotation counts at once.
    denied
        .write_manifest(&[(ROLE.to_owned(), "role-better".to_owned())])
        .unwrap();
    eventually("the new role is had", || {
        document(&denied, "role-better")
            .body
            .contains("secret-of-role-better")
    });
}

fn document_is_good(pod: &Pod, role: &str) -> bool {
    document(pod, role).json()["SecretAccessKey"] == format!("secret-of-{role}")
}

#[test]
fn fractions_of_seconds_are_not_passed_on_and_never_rounded_up() {
    let Some(node) = node() else { return };
    let soon = std::time::SystemTime::now() + Duration::from_secs(3000);
    let second = humantime::format_rfc3339_seconds(soon).to_string();
    let expiration = Some(second.replace('Z', ".999999Z"));
    node.sts.behave(Behaviour {
        expiration,
        ..Behaviour::default()
    });
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    assert_eq!(document(&a, "role-a").json()["Expiration"], second.as_str());
}

#[test]
fn everything_that_shapes_a_session_reaches_sts_and_nobody_shares_what_differs() {
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
        let told: Vec<_> = calls
            .iter()
            .map(|call| (call.session.as_str(), call.external_id.as_deref()))
            .collect();
        assert_eq!(
            told,
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
}

#[test]
fn a_role_may_be_assumed_first_and_assumes_all_others() {
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
    // Where that role is denied, each pod is told why, and STS is asked once.
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
fn bad_input_stays_with_its_pod() {
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
        assert_eq!(told.json()["Code"], "AssumeRoleUnauthorizedAccess", "{told:?}");
        assert!(told.body.contains(want), "{told:?}");
        assert!(document_is_good(&fine, "role-fine"));
    }
    assert!(document(&slow, &long).status == 200, "matched in linear time");
    // A file that is no manifest, and one with any bytes.
    node.lab
        .manifest("broken.yaml", "kind: Pod\nmetadata: [")
        .unwrap();
    std::fs::write(node.lab.manifests().join("bytes.json"), [0xff, 0xfe, 0, 1]).unwrap();
    agent.wait_for("broken.yaml").unwrap();
    agent.wait_for("bytes.json").unwrap();
    assert!(document_is_good(&fine, "role-fine"));
}
