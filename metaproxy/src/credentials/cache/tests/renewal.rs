//! Tests which sessions are renewed or let go, and how much life is left of a session that is served.

use super::*;
use rstest::rstest;

/// The pod asks every minute, for a day.
#[tokio::test(start_paused = true)]
async fn a_session_in_use_is_renewed_at_about_half_life_and_never_waited_for() {
    let (script, sessions) = sts(200, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(Duration::from_secs(1)).await;
    for _ in 0..24 * 60 {
        let start = Instant::now();
        let left = left(&sessions).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(left >= minutes(29), "{left:?}");
        pass(minutes(1)).await;
    }
    let calls = script.minutes();
    let pauses: Vec<f64> = calls.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(
        pauses.iter().all(|pause| (26.9..30.1).contains(pause)),
        "{pauses:?}"
    );
    let spread =
        pauses.iter().copied().fold(f64::NAN, f64::max) - pauses.iter().copied().fold(f64::NAN, f64::min);
    assert!(spread > 1.0, "jitter: {pauses:?}");
    assert!((48..=54).contains(&calls.len()), "{}", calls.len());
}

/// The cases are the times at which SDKs refresh: botocore 15 minutes before the end, JavaScript 5 minutes, Rust 10
/// seconds.
#[rstest]
#[case(15 * 60)]
#[case(5 * 60)]
#[case(10)]
#[tokio::test(start_paused = true)]
async fn an_sdk_that_refreshes_shortly_before_the_end_gets_enough_life(#[case] before: u64) {
    let (_, sessions) = sts(200, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(Duration::from_secs(1)).await;
    for _ in 0..50 {
        let start = Instant::now();
        let left = left(&sessions).await.unwrap();
        assert!(
            left >= minutes(26),
            "botocore rewrites the expiry of less: {left:?}"
        );
        assert!(
            start.elapsed() <= Duration::from_millis(200),
            "one call at the most"
        );
        pass(left - Duration::from_secs(before)).await;
    }
}

#[rstest]
#[case(15)]
#[case(30)]
#[case(60)]
#[case(720)]
#[tokio::test(start_paused = true)]
async fn at_any_age_and_for_any_duration_there_is_enough_left(#[case] life: u64) {
    let (_, sessions) = sts(100, [Does::Gives(minutes(life))]);
    for step in 0..500 {
        let left = left(&sessions).await.unwrap();
        let least = minutes(26).min(minutes(life) / 2);
        assert!(left >= least, "{left:?} of {life} minutes");
        pass(Duration::from_secs(step * 7)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_no_request_asked_for_since_it_was_obtained_is_let_go() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(minutes(10)).await;
    assert!(left(&sessions).await.is_ok(), "asked for once");
    pass(minutes(600)).await;
    let calls = script.minutes();
    assert_eq!(calls.len(), 2, "renewed once, then no more: {calls:?}");
    let slot = sessions.slot(&key("a"));
    assert!(slot.borrow().session.is_none(), "nothing is kept of it");
    assert!(
        left(&sessions).await.unwrap() > minutes(59),
        "and fetched again when it is asked for"
    );
}

/// Otherwise the end of such a session would raise an alarm on each node with a pod that makes no requests any more.
#[tokio::test(start_paused = true)]
async fn a_session_that_was_let_go_is_counted_as_idle_and_its_end_is_not_counted() {
    let (_script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(minutes(10)).await;
    let renewed = sessions.counts();
    assert_eq!((renewed.valid, renewed.idle), (1, 0));
    assert!(renewed.least_left.unwrap() > minutes(49));
    pass(minutes(45)).await;
    let let_go = sessions.counts();
    assert_eq!((let_go.valid, let_go.idle), (0, 1));
    assert_eq!((let_go.least_left, let_go.oldest), (None, None));
}

/// The cases are before half of the session's life, and after it.
#[rstest]
#[case(30 * 60 - 1)]
#[case(33 * 60)]
#[tokio::test(start_paused = true)]
async fn a_let_go_session_with_enough_left_is_served_and_renewed_in_the_background(#[case] at: u64) {
    let (script, sessions) = sts(5_000, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(Duration::from_secs(at)).await;
    assert_eq!(script.count(), 1, "let go");
    let start = Instant::now();
    assert!(left(&sessions).await.unwrap() >= minutes(26));
    assert_eq!(
        start.elapsed(),
        Duration::ZERO,
        "no request waits for the renewal in the background"
    );
    pass(Duration::from_secs(6)).await;
    for _ in 0..100 {
        assert!(left(&sessions).await.unwrap() > minutes(58));
        pass(Duration::from_millis(100)).await;
    }
    assert_eq!(script.count(), 2, "and then it is one like any other");
}

#[tokio::test(start_paused = true)]
async fn with_little_left_a_request_waits_for_a_new_session_and_gets_the_old_one_if_none_comes() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(minutes(50)).await;
    assert!(left(&sessions).await.unwrap() > minutes(59), "the new one");
    assert_eq!(script.count(), 2);

    let (script, sessions) = sts(100, [hour(), Does::Fails(down())]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(minutes(50)).await;
    let got = left(&sessions).await.unwrap();
    assert!(
        (minutes(9)..=minutes(10)).contains(&got),
        "the old one, which is still valid: {got:?}"
    );
    // The old session is served until it has expired, and not after that.
    for _ in 0..1200 {
        match left(&sessions).await {
            Ok(left) => assert!(left > Duration::ZERO),
            Err(error) => {
                assert_eq!(error, down());
                assert!(script.minutes().last().unwrap() >= &59.0);
            }
        }
        pass(Duration::from_secs(1)).await;
    }
    assert_eq!(left(&sessions).await.unwrap_err(), down());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_leaves_no_session_and_no_renewal() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&pod("a"), &key("a"));
    sessions.prefetch(&pod("a"), &key("a"));
    pass(Duration::from_millis(200)).await;
    assert!(sessions.get(&pod("a"), &key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.count(), 1);
    sessions.retain(&HashSet::from([key("a")]));
    assert!(sessions.get(&pod("a"), &key("a"), Instant::now()).await.is_ok());
    sessions.retain(&HashSet::new());
    pass(minutes(600)).await;
    assert_eq!(script.count(), 1);
    assert!(sessions.get(&pod("a"), &key("a"), Instant::now()).await.is_err());
}
