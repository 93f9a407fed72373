//! Tests pods whose sessions change again and again.

use super::*;
use crate::credentials::cache::pacing::{MAX_AHEAD_AT_ONCE, MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
use crate::roles::{Principal, StsEndpoint, WebIdentity};
use crate::telemetry::metrics::TurnOutcome;

const AT_ONCE: usize = MAX_SESSIONS_AT_ONCE as usize;

fn key_of_role(name: &str, role: &str) -> SessionKey {
    SessionKey {
        role: format!("arn:aws:iam::123456789012:role/{role}").parse().unwrap(),
        ..key(name)
    }
}

/// A change of one annotation, applied to the key of a pod's session.
type Reshape = fn(&mut SessionKey, usize);

const RESHAPES: [Reshape; 4] = [
    |key, number| {
        key.role = format!("arn:aws:iam::123456789012:role/role-{number}")
            .parse()
            .unwrap()
    },
    |key, number| key.shape.external_id = Some(format!("id-{number}")),
    |key, number| key.shape.name = SessionName::cleaned(&format!("name-{number}")),
    |key, number| {
        // A service account whose role, or audience, changes.
        key.shape.principal = Principal::ServiceAccount(Box::new(WebIdentity {
            namespace: "apps".to_owned(),
            service_account: "reader".to_owned(),
            pod: "tenant".to_owned(),
            uid: pod("tenant"),
            audience: format!("audience-{number}"),
            endpoint: StsEndpoint::Regional,
        }));
    },
];

/// Changes the pod's annotations 400 times a second, for this time. As in the agent, the old session is forgotten and
/// the new one is prefetched. Returns the last key, and the number of changes.
async fn change(sessions: &Cache, reshapes: &[Reshape], time: Duration) -> (SessionKey, usize) {
    let mut last = key("tenant");
    let (start, mut number) = (Instant::now(), 0);
    while start.elapsed() < time {
        last = key("tenant");
        reshapes[number % reshapes.len()](&mut last, number);
        sessions.retain(&HashSet::from([last.clone(), key("other")]));
        sessions.prefetch(&pod("tenant"), &last);
        number += 1;
        // The clock of tokio has steps of a millisecond: 5 ms for two changes.
        pass(Duration::from_millis(if number % 2 == 0 { 3 } else { 2 })).await;
    }
    (last, number)
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_changes_its_annotations_400_times_a_second_costs_few_calls_whatever_it_changes() {
    for reshapes in [
        &RESHAPES[0..1],
        &RESHAPES[1..2],
        &RESHAPES[2..3],
        &RESHAPES[3..4],
        &RESHAPES[..],
    ] {
        let (script, sessions) = sts(10, [hour()]);
        let (last, changes) = change(&sessions, reshapes, Duration::from_secs(8)).await;
        let calls = script.count();
        assert!((AT_ONCE..=AT_ONCE + 4).contains(&calls), "{calls}");
        // The last session is served after one more call.
        pass(NEW_SESSION_INTERVAL).await;
        let session = sessions.get(&pod("tenant"), &last, Instant::now()).await;
        assert!(session.is_ok(), "{session:?}");
        assert_eq!(script.count(), calls + 1);
        let turns = sessions.turns();
        let counts = [TurnOutcome::Prompt, TurnOutcome::Slowed, TurnOutcome::GivenUp];
        let [prompt, slowed, given_up] = counts.map(|outcome| turns.count(outcome) as usize);
        assert!(prompt >= AT_ONCE, "{prompt}");
        assert_eq!(prompt + slowed, script.count());
        assert!(changes > 2000, "{changes}");
        assert_eq!(given_up, changes - script.count(), "each that was not fetched");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_forgotten_before_its_turn_is_never_fetched() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..=AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("tenant", &number.to_string()));
    }
    pass(Duration::from_millis(100)).await;
    assert_eq!(script.count(), AT_ONCE);
    // The pod is gone.
    sessions.retain(&HashSet::new());
    pass(minutes(120)).await;
    assert_eq!(script.count(), AT_ONCE);
    assert_eq!(sessions.turns().count(TurnOutcome::GivenUp), 1);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_forgotten_while_it_waits_for_other_calls_is_never_fetched() {
    let (script, sessions) = sts(1000, [hour()]);
    for number in 0..MAX_BACKGROUND_CALLS {
        sessions.prefetch(&pod(&number.to_string()), &key(&number.to_string()));
    }
    pass(Duration::from_millis(10)).await;
    sessions.prefetch(&pod("late"), &key("late"));
    pass(Duration::from_millis(10)).await;
    assert_eq!(script.count(), MAX_BACKGROUND_CALLS, "they are as many as may be");
    sessions.retain(
        &(0..MAX_BACKGROUND_CALLS)
            .map(|number| key(&number.to_string()))
            .collect(),
    );
    pass(Duration::from_secs(10)).await;
    assert_eq!(script.count(), MAX_BACKGROUND_CALLS);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_would_wait_too_long_for_its_turn_is_refused_in_time_and_served_later() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("tenant", &number.to_string()));
    }
    let start = Instant::now();
    let next = key_of_role("tenant", "next");
    let refused = sessions.get(&pod("tenant"), &next, soon()).await;
    assert_eq!(refused.unwrap_err(), SessionError::Paced);
    assert_eq!(start.elapsed(), Duration::from_millis(850));
    assert!(sessions.view(&next).unwrap().paced.is_some());
    pass(NEW_SESSION_INTERVAL - Duration::from_millis(900)).await;
    assert!(sessions.get(&pod("tenant"), &next, soon()).await.is_ok());
    assert_eq!(script.count(), AT_ONCE + 1);
    assert!(sessions.view(&next).unwrap().paced.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_session_is_forgotten_while_it_waits_fails_at_once_without_an_sts_call() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("tenant", &number.to_string()));
    }
    let (start, next) = (Instant::now(), key_of_role("tenant", "next"));
    let (got, ()) = tokio::join!(
        async {
            let got = sessions.get(&pod("tenant"), &next, soon()).await;
            (got, start.elapsed())
        },
        async {
            pass(Duration::from_millis(100)).await;
            sessions.retain(&HashSet::new());
        },
    );
    assert_eq!(got.0.unwrap_err(), SessionError::Forgotten);
    assert_eq!(got.1, Duration::from_millis(100));
    pass(minutes(1)).await;
    assert_eq!(script.count(), AT_ONCE);
    assert!(sessions.view(&next).is_none(), "nothing is kept of it");
}

/// A user who may create pods binds them to the node by hand, and the kubelet runs none of them.
#[tokio::test(start_paused = true)]
async fn pods_that_are_made_400_times_a_second_cost_few_calls_and_hold_up_no_request() {
    const TIME: usize = 8;
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..400 * TIME {
        let name = number.to_string();
        sessions.prefetch(&pod(&name), &key(&name));
        pass(Duration::from_millis(if number % 2 == 0 { 3 } else { 2 })).await;
    }
    let calls = script.count();
    let expected = MAX_AHEAD_AT_ONCE as usize + 10 * TIME;
    assert!((expected - 1..=expected + 1).contains(&calls), "{calls}");
    // Both pods run. The first has no session yet, and the session of the second waits for its turn.
    for name in ["late", "3000"] {
        let start = Instant::now();
        assert!(sessions.get(&pod(name), &key(name), soon()).await.is_ok());
        assert_eq!(start.elapsed(), Duration::from_millis(10), "one call's time");
    }
    // A third call is possible, if its turn came meanwhile.
    let calls = script.count() - calls;
    assert!((2..=3).contains(&calls), "{calls}");
    let calls = script.count();
    sessions.retain(&HashSet::new());
    pass(minutes(1)).await;
    assert_eq!(script.count(), calls);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_fetches_the_sessions_of_all_its_pods_without_a_pause() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..MAX_AHEAD_AT_ONCE {
        let name = number.to_string();
        sessions.prefetch(&pod(&name), &key(&name));
    }
    // `MAX_BACKGROUND_CALLS` calls run at a time.
    pass(Duration::from_millis(10) * MAX_AHEAD_AT_ONCE.div_ceil(MAX_BACKGROUND_CALLS as u32)).await;
    assert_eq!(script.count(), MAX_AHEAD_AT_ONCE as usize);
}

/// Pods share a session with `--session-scope role`.
#[tokio::test(start_paused = true)]
async fn a_paced_pod_does_not_hold_up_another_one_that_shares_its_session() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("shared", &number.to_string()));
    }
    let shared = key("shared");
    sessions.prefetch(&pod("tenant"), &shared);
    pass(Duration::from_millis(100)).await;
    assert_eq!(script.count(), AT_ONCE, "the first has no turn");
    let start = Instant::now();
    assert!(sessions.get(&pod("other"), &shared, soon()).await.is_ok());
    assert_eq!(start.elapsed(), Duration::from_millis(10), "one call's time");
    // A valid session is served to both pods, paced or not.
    assert!(
        sessions
            .get(&pod("tenant"), &shared, Instant::now())
            .await
            .is_ok()
    );
}

#[tokio::test(start_paused = true)]
async fn a_session_that_a_paced_pod_asks_for_is_fetched_ahead_for_another_one_that_appears() {
    let (script, sessions) = sts(10, [hour()]);
    for number in 0..=AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("shared", &number.to_string()));
    }
    pass(Duration::from_millis(100)).await;
    assert_eq!(script.count(), AT_ONCE);
    sessions.prefetch(&pod("other"), &key_of_role("shared", &AT_ONCE.to_string()));
    pass(Duration::from_millis(1)).await;
    assert_eq!(script.count(), AT_ONCE + 1);
}

#[tokio::test(start_paused = true)]
async fn a_paced_pods_neighbours_are_served_meanwhile_and_its_own_session_is_renewed() {
    let (script, sessions) = sts(10, [hour()]);
    assert!(sessions.get(&pod("other"), &key("other"), soon()).await.is_ok());
    change(&sessions, &RESHAPES, Duration::from_secs(4)).await;
    let start = Instant::now();
    assert!(
        sessions
            .get(&pod("other"), &key("other"), Instant::now())
            .await
            .is_ok()
    );
    assert!(sessions.get(&pod("new"), &key("new"), soon()).await.is_ok());
    assert_eq!(start.elapsed(), Duration::from_millis(10), "one call's time");
    assert!(script.count() < 20, "{}", script.count());
}

#[tokio::test(start_paused = true)]
async fn renewals_take_no_turn() {
    let (script, sessions) = sts(10, [hour()]);
    assert!(left(&sessions).await.is_ok());
    let (start, used) = (Instant::now(), key_of_role("a", "another"));
    while start.elapsed() < minutes(600) {
        pass(Duration::from_secs(20)).await;
        assert!(left(&sessions).await.is_ok());
    }
    let calls = script.count();
    assert!(calls > AT_ONCE, "renewed again and again: {calls}");
    let turns = sessions.turns();
    assert_eq!(
        (turns.count(TurnOutcome::Prompt), turns.count(TurnOutcome::Slowed)),
        (1, 0)
    );
    // All turns of the pod are available.
    sessions.prefetch(&pod("a"), &used);
    pass(Duration::from_millis(100)).await;
    assert_eq!(script.count(), calls + 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_call_that_fails_is_retried_without_another_turn() {
    let (script, sessions) = sts(10, [Does::Fails(down()), hour()]);
    for number in 1..AT_ONCE {
        sessions.prefetch(&pod("tenant"), &key_of_role("tenant", &number.to_string()));
    }
    script.then(Does::Fails(down()));
    let last = key_of_role("tenant", "last");
    assert!(sessions.get(&pod("tenant"), &last, soon()).await.is_err());
    script.then(hour());
    pass(Duration::from_millis(600)).await;
    assert!(sessions.get(&pod("tenant"), &last, soon()).await.is_ok());
}
