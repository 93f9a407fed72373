//! Answers to pods come in time, and existing sessions are served, whatever STS does.

use std::time::{Duration, Instant};

use crate::common::http::{LIST, get};
use crate::common::sessions::{ROLE, document, document_is_good, in_time, start};
use crate::common::{
    agent_binary, counts, dial, eventually, eventually_within, node_alone, node_with_sts, outcomes,
    start_dial,
};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::sts::Behaviour;
use rstest::rstest;

#[test]
fn five_hundred_simultaneous_requests_for_a_missing_session_cause_one_sts_call() {
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
    // All requests are held while the pod is not known. From now on it is known.
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

#[rstest]
#[case::down(Behaviour { fails: Some((500, "InternalFailure")), ..Behaviour::default() })]
#[case::unavailable(Behaviour { fails: Some((503, "ServiceUnavailable")), ..Behaviour::default() })]
#[case::throttling(Behaviour { fails: Some((400, "Throttling")), ..Behaviour::default() })]
#[case::expired_token_of_the_node(Behaviour { fails: Some((403, "ExpiredToken")), ..Behaviour::default() })]
#[case::expired(Behaviour { expiration: Some("2020-01-01T00:00:00Z".to_owned()), ..Behaviour::default() })]
#[case::nonsense(Behaviour { expiration: Some("tomorrow".to_owned()), ..Behaviour::default() })]
#[case::far_away(Behaviour { expiration: Some("2099-01-01T00:00:00Z".to_owned()), ..Behaviour::default() })]
#[case::slow(Behaviour { takes: Duration::from_secs(5), ..Behaviour::default() })]
fn while_sts_fails_pods_are_answered_in_time_and_existing_sessions_are_served(#[case] behaviour: Behaviour) {
    let Some(node) = node_alone() else { return };
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
    assert!(!agent.logged().contains("secret-of"), "{}", agent.logged());
}

/// A proxy or a firewall answers instead of STS.
#[rstest]
#[case::forbidden(403)]
#[case::bad_gateway(502)]
fn an_answer_that_is_not_from_sts_is_reported_once_with_its_status(#[case] status: u16) {
    const RECOVERY_TIMEOUT: Duration = Duration::from_secs(40);
    let Some(node) = node_alone() else { return };
    node.sts.behave(Behaviour {
        page: Some(status),
        ..Behaviour::default()
    });
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = node.agent();
    let want = format!("the answer is not from STS: HTTP status {status}, content type text/html");
    let mut attempts = 0;
    eventually_within(RECOVERY_TIMEOUT, "STS is tried again and again", || {
        let (list, document) = in_time(&a, "role-a");
        assert_eq!((list.status, document.status), (200, 503), "{document:?}");
        attempts += usize::from(document.body.contains(&want));
        attempts >= 3 && node.sts.calls().len() >= 4
    });
    let said = agent.logged();
    assert_eq!(said.matches("no session: ").count(), 1, "{said}");
    assert!(said.contains(&want) && !said.contains("Incident"), "{said}");
    node.sts.behave(Behaviour::default());
    eventually_within(RECOVERY_TIMEOUT, "and all is well again", || {
        document(&a, "role-a").status == 200
    });
}

/// No server answers at the address of STS.
#[test]
fn an_sts_that_cannot_be_reached_is_reported_in_time() {
    let Some(node) = node_alone() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    // At the first address connections are refused at once. The second one has no route, so there is no answer.
    for address in ["http://10.200.0.2:9", "http://10.200.0.77"] {
        let spec = AgentSpec::new(agent_binary(), address);
        let _agent = Agent::start(&node.lab, &spec).unwrap();
        for _ in 0..3 {
            let (list, document) = in_time(&a, "role-a");
            assert_eq!((list.status, document.status), (200, 503), "{document:?}");
            assert!(document.body.contains("no credentials for role"), "{document:?}");
        }
    }
}

/// Each call takes longer than an SDK waits, also after the first one.
#[test]
fn an_sts_that_always_takes_five_seconds_still_provides_sessions() {
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

/// A request waits for STS while the pod's role is removed.
#[test]
fn a_role_that_is_removed_while_a_request_waits_is_not_served() {
    const STS_LATENCY: Duration = Duration::from_millis(750);
    let Some(node) = node_with_sts(STS_LATENCY) else {
        return;
    };
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
            let was_in_time = asked.elapsed() < STS_LATENCY - Duration::from_millis(50);
            (waiting.join().unwrap(), was_in_time)
        });
        if was_in_time {
            assert_eq!(answer.status, 404, "{answer:?}");
            return;
        }
        // The machine is busy, and STS answered before the role was removed.
    }
    panic!("STS was always quicker");
}

#[test]
fn a_denied_role_causes_one_sts_call_and_a_reason_and_other_pods_are_served() {
    let Some(node) = node_alone() else { return };
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
        let refusal = document.json();
        assert_eq!(
            (document.status, &refusal["Code"]),
            (200, &"AssumeRoleUnauthorizedAccess".into())
        );
        let message = refusal["Message"].as_str().unwrap();
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
    // Another role in the annotation takes effect at once.
    denied
        .write_manifest(&[(ROLE.to_owned(), "role-better".to_owned())])
        .unwrap();
    eventually("the new role is had", || {
        document(&denied, "role-better")
            .body
            .contains("secret-of-role-better")
    });
}

#[test]
fn fractions_of_seconds_in_an_expiration_are_dropped_and_never_rounded_up() {
    let Some(node) = node_alone() else { return };
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
