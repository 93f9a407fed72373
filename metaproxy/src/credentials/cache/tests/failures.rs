//! Tests an STS that is slow, down, or denies.

use super::*;
use crate::captured_log::CapturedLog;

#[tokio::test(start_paused = true)]
async fn a_request_gives_up_on_a_slow_sts_in_time_and_the_answer_is_kept() {
    let (script, sessions) = sts(5_000, [hour()]);
    let start = Instant::now();
    assert!(matches!(left(&sessions).await, Err(ObtainError::Unavailable(_))));
    assert_eq!(start.elapsed(), Duration::from_millis(850));
    pass(Duration::from_secs(5)).await;
    assert!(sessions.get(&pod("a"), &key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_denied_role_is_asked_for_once_in_30_seconds_and_only_on_request() {
    let (script, sessions) = sts(10, [Does::Fails(denied())]);
    for _ in 0..100 {
        assert_eq!(left(&sessions).await.unwrap_err(), denied());
        pass(Duration::from_millis(290)).await;
    }
    assert_eq!(script.count(), 1);
    pass(Duration::from_secs(2)).await;
    let _ = left(&sessions).await;
    assert_eq!(script.count(), 2);
    let _ = sessions.get(&pod("b"), &key("b"), soon()).await;
    assert_eq!(script.count(), 3, "another session is not affected");
    pass(minutes(600)).await;
    assert_eq!(script.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_backed_off_until_a_success() {
    let (script, sessions) = sts(10, [Does::Fails(down())]);
    // The pod asks ten times a second, for ten minutes.
    for _ in 0..6000 {
        assert_eq!(left(&sessions).await.unwrap_err(), down());
        pass(Duration::from_millis(100)).await;
    }
    let calls = script.minutes();
    // The pause doubles from 0.5 s to 30 s: about 7 calls until the maximum, then 2 a minute.
    assert!((20..=30).contains(&calls.len()), "{calls:?}");
    let pauses: Vec<f64> = calls.windows(2).map(|pair| (pair[1] - pair[0]) * 60.0).collect();
    assert!(
        pauses.windows(2).all(|pair| pair[1] > pair[0] - 0.2),
        "{pauses:?}"
    );
    assert!((29.9..31.0).contains(pauses.last().unwrap()), "{pauses:?}");
    script.then(hour());
    pass(Duration::from_secs(31)).await;
    assert!(left(&sessions).await.is_ok());
    // The next failure begins with a short pause again.
    script.then(Does::Fails(down()));
    pass(minutes(61)).await;
    script.then(hour());
    pass(minutes(10)).await;
    assert!(left(&sessions).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_a_session_is_obtained_before_the_next_request() {
    let (script, sessions) = sts(10, [Does::Fails(down())]);
    sessions.prefetch(&pod("a"), &key("a"));
    pass(minutes(60)).await;
    let calls = script.count();
    assert!(
        (12..=30).contains(&calls),
        "not more often than every five minutes in the end: {calls}"
    );
    script.then(hour());
    pass(minutes(11)).await;
    assert_eq!(script.count(), calls + 1);
    assert!(sessions.get(&pod("a"), &key("a"), Instant::now()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn while_sts_denies_a_valid_session_is_served_to_its_end() {
    let (script, sessions) = sts(100, [hour(), Does::Fails(denied())]);
    for _ in 0..59 {
        assert!(left(&sessions).await.is_ok());
        pass(minutes(1)).await;
    }
    pass(minutes(2)).await;
    assert_eq!(left(&sessions).await.unwrap_err(), denied());
    let calls = script.count();
    assert!((20..70).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_never_served() {
    let (_, sessions) = sts(10, [Does::Gives(Duration::ZERO), Does::Fails(down())]);
    assert!(left(&sessions).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_sts_whose_sessions_are_about_to_expire_is_not_called_without_end() {
    let (script, sessions) = sts(10, [Does::Gives(Duration::from_secs(2))]);
    for _ in 0..600 {
        let _ = left(&sessions).await;
        pass(Duration::from_millis(100)).await;
    }
    assert!(script.count() <= 62, "{}", script.count());
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_sts_is_logged_in_a_few_lines_whatever_the_number_of_pods_and_attempts() {
    let (log, _guard) = CapturedLog::start(tracing::Level::INFO);
    let (script, sessions) = sts(10, [Does::Fails(down())]);
    for number in 0..100 {
        sessions.prefetch(&pod(&number.to_string()), &key(&number.to_string()));
    }
    pass(minutes(20)).await;
    assert!(script.count() > 500, "each tries again and again");
    let lines = log.lines();
    let failures = lines.iter().filter(|line| line.contains("session=apps."));
    assert_eq!((failures.count(), lines.len()), (10, 11), "{lines:#?}");
    assert!(lines[10].contains("and 90 more"), "{lines:#?}");

    script.then(hour());
    pass(minutes(11)).await;
    let lines = log.lines();
    assert!((10..=100).contains(&lines.len()), "{lines:#?}");
    assert!(
        lines.iter().all(|line| line.contains("session obtained")),
        "{lines:#?}"
    );
    assert!(
        lines[0].contains("failures=") && lines[0].contains("(STS could not be asked)"),
        "{lines:#?}"
    );
    pass(minutes(60)).await;
    assert_eq!(log.lines(), [""; 0], "renewals are no news");
}

#[tokio::test(start_paused = true)]
async fn another_error_of_the_same_session_is_logged_and_the_same_one_is_not() {
    let (log, _guard) = CapturedLog::start(tracing::Level::INFO);
    let (script, sessions) = sts(10, [Does::Fails(denied())]);
    for (does, said) in [(denied(), 1), (denied(), 0), (down(), 1), (down(), 0)] {
        script.then(Does::Fails(does));
        pass(minutes(10)).await;
        let _ = left(&sessions).await;
        assert_eq!(log.lines().len(), said);
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_that_a_request_waited_for_is_logged() {
    let (log, _guard) = CapturedLog::start(tracing::Level::INFO);
    let (_, sessions) = sts(5_000, [hour()]);
    let _ = left(&sessions).await;
    pass(Duration::from_secs(5)).await;
    let lines = log.lines();
    assert!(
        lines.len() == 1 && lines[0].contains("an STS call took 5.0 s"),
        "{lines:#?}"
    );
}
