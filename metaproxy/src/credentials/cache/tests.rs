use super::*;
use crate::credentials::session::Issued;
use crate::roles::SessionShape;
use crate::roles::session_name::SessionName;
use rstest::rstest;
use std::cell::Cell;
use std::collections::VecDeque;

/// What STS does about one call.
#[derive(Clone, Debug)]
enum Does {
    /// A session that lives so long, after a while.
    Gives(Duration),
    Fails(ObtainError),
}

/// Plays STS: does things in order, the last one for ever.
#[derive(Debug)]
struct Script {
    takes: Duration,
    does: Mutex<VecDeque<Does>>,
    /// When it was called, and for which session's name.
    calls: Mutex<Vec<(Instant, String)>>,
}

impl Script {
    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Minutes at which it was called, after the first call.
    fn minutes(&self) -> Vec<f64> {
        let calls = self.calls.lock().unwrap();
        calls
            .iter()
            .map(|(at, _)| at.duration_since(calls[0].0).as_secs_f64() / 60.0)
            .collect()
    }

    fn then(&self, does: Does) {
        *self.does.lock().unwrap() = [does].into();
    }
}

impl Issuer for Arc<Script> {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let number = {
            let mut calls = self.calls.lock().unwrap();
            calls.push((Instant::now(), key.shape.name.to_string()));
            calls.len()
        };
        let obtained = clock();
        let does = {
            let mut does = self.does.lock().unwrap();
            if does.len() > 1 {
                does.pop_front().unwrap()
            } else {
                does[0].clone()
            }
        };
        tokio::time::sleep(self.takes).await;
        match does {
            Does::Fails(error) => Err(error),
            Does::Gives(life) => {
                let issued = Issued {
                    access_key_id: &format!("ASIA{number}"),
                    secret_access_key: "S",
                    token: "T",
                    expiration: obtained + life,
                };
                Ok(Session::new(&key.role, &issued, obtained))
            }
        }
    }
}

thread_local! {
    /// Where the paused clock of tokio stood when this test first looked, and what time of day that is.
    static START: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

/// The time of day, by tokio's clock, so that it can be paused and moved. The tests' runtimes have one thread.
fn clock() -> SystemTime {
    let (start, time) = START.get().unwrap_or((Instant::now(), SystemTime::now()));
    START.set(Some((start, time)));
    time + start.elapsed()
}

fn sts<const N: usize>(takes: u64, does: [Does; N]) -> (Arc<Script>, Sessions<Arc<Script>>) {
    START.set(None);
    clock();
    let script = Arc::new(Script {
        takes: Duration::from_millis(takes),
        does: Mutex::new(does.into()),
        calls: Mutex::default(),
    });
    (Arc::clone(&script), Sessions::with_clock(script, clock))
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

fn hour() -> Does {
    Does::Gives(minutes(60))
}

fn denied() -> ObtainError {
    ObtainError::Denied("no".to_owned())
}

fn down() -> ObtainError {
    ObtainError::Unavailable("down".to_owned())
}

fn key(name: &str) -> SessionKey {
    SessionKey {
        role: "arn:aws:iam::123456789012:role/app".parse().unwrap(),
        shape: SessionShape {
            name: SessionName::of_pod("apps", name),
            external_id: None,
            tags: Vec::new(),
            pod: None,
        },
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(850)
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

type Cache = Sessions<Arc<Script>>;

/// What is left of the session that is served.
async fn left(sessions: &Cache) -> Result<Duration, ObtainError> {
    sessions
        .get(&key("a"), soon())
        .await
        .map(|session| session.left(clock()))
}

#[tokio::test(start_paused = true)]
async fn five_hundred_that_wait_cost_one_call() {
    let (script, sessions) = sts(100, [hour()]);
    let waiting: Vec<_> = (0..500)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.get(&key("a"), soon()).await.is_ok() })
        })
        .collect();
    for each in waiting {
        assert!(each.await.unwrap());
    }
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sts_is_given_up_on_in_time_and_its_answer_kept() {
    let (script, sessions) = sts(5_000, [hour()]);
    let start = Instant::now();
    assert!(matches!(left(&sessions).await, Err(ObtainError::Unavailable(_))));
    assert_eq!(start.elapsed(), Duration::from_millis(850));
    pass(Duration::from_secs(5)).await;
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_does_not_stop_the_fetch() {
    let (script, sessions) = sts(100, [hour()]);
    let waiter = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.get(&key("a"), soon()).await }
    });
    tokio::task::yield_now().await;
    waiter.abort();
    assert!(left(&sessions).await.is_ok());
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_denied_role_is_asked_for_once_in_30_seconds_and_only_when_somebody_asks() {
    let (script, sessions) = sts(10, [Does::Fails(denied())]);
    for _ in 0..100 {
        assert_eq!(left(&sessions).await.unwrap_err(), denied());
        pass(Duration::from_millis(290)).await;
    }
    assert_eq!(script.count(), 1);
    pass(Duration::from_secs(2)).await;
    let _ = left(&sessions).await;
    assert_eq!(script.count(), 2);
    let _ = sessions.get(&key("b"), soon()).await;
    assert_eq!(script.count(), 3, "another session is not affected");
    pass(minutes(600)).await;
    assert_eq!(script.count(), 3);
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_backed_off_and_forgotten() {
    let (script, sessions) = sts(10, [Does::Fails(down())]);
    // For ten minutes, ten times a second.
    for _ in 0..6000 {
        assert_eq!(left(&sessions).await.unwrap_err(), down());
        pass(Duration::from_millis(100)).await;
    }
    let calls = script.minutes();
    // 0.5 s doubling to 30 s: about 7 calls until the longest pause, then 2 a minute.
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
async fn after_an_outage_a_session_is_there_before_anybody_asks_again() {
    let (script, sessions) = sts(10, [Does::Fails(down())]);
    sessions.prefetch(&key("a"));
    pass(minutes(60)).await;
    let calls = script.count();
    assert!(
        (12..=30).contains(&calls),
        "not more often than every five minutes in the end: {calls}"
    );
    script.then(hour());
    pass(minutes(11)).await;
    assert_eq!(script.count(), calls + 1);
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
}

/// A pod that asks every minute, for a day.
#[tokio::test(start_paused = true)]
async fn a_session_in_use_is_renewed_at_about_half_life_and_never_waited_for() {
    let (script, sessions) = sts(200, [hour()]);
    sessions.prefetch(&key("a"));
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

/// As the SDKs refresh: botocore 15 minutes before the end, JavaScript 5 minutes, Rust 10 seconds.
#[rstest]
#[case(15 * 60)]
#[case(5 * 60)]
#[case(10)]
#[tokio::test(start_paused = true)]
async fn an_sdk_that_comes_back_shortly_before_the_end_finds_enough(#[case] before: u64) {
    let (_, sessions) = sts(200, [hour()]);
    sessions.prefetch(&key("a"));
    pass(Duration::from_secs(1)).await;
    for _ in 0..50 {
        let start = Instant::now();
        let left = left(&sessions).await.unwrap();
        assert!(
            left >= minutes(25),
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
        let least = minutes(25).min(minutes(life) / 2);
        assert!(left >= least, "{left:?} of {life} minutes");
        pass(Duration::from_secs(step * 7)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_nobody_asked_for_since_it_was_obtained_is_let_go() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&key("a"));
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

/// Before half its life, and after.
#[rstest]
#[case(30 * 60 - 1)]
#[case(33 * 60)]
#[tokio::test(start_paused = true)]
async fn a_session_that_was_let_go_is_served_while_it_has_enough_left_and_renewed_behind(#[case] at: u64) {
    let (script, sessions) = sts(5_000, [hour()]);
    sessions.prefetch(&key("a"));
    pass(Duration::from_secs(at)).await;
    assert_eq!(script.count(), 1, "let go");
    let start = Instant::now();
    assert!(left(&sessions).await.unwrap() >= minutes(25));
    assert_eq!(
        start.elapsed(),
        Duration::ZERO,
        "nobody waits for the renewal behind it"
    );
    pass(Duration::from_secs(6)).await;
    for _ in 0..100 {
        assert!(left(&sessions).await.unwrap() > minutes(58));
        pass(Duration::from_millis(100)).await;
    }
    assert_eq!(script.count(), 2, "and then it is one like any other");
}

#[tokio::test(start_paused = true)]
async fn with_little_left_a_new_session_is_waited_for_and_the_old_one_served_where_it_does_not_come() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&key("a"));
    pass(minutes(50)).await;
    assert!(left(&sessions).await.unwrap() > minutes(59), "the new one");
    assert_eq!(script.count(), 2);

    let (script, sessions) = sts(100, [hour(), Does::Fails(down())]);
    sessions.prefetch(&key("a"));
    pass(minutes(50)).await;
    let got = left(&sessions).await.unwrap();
    assert!(
        (minutes(9)..=minutes(10)).contains(&got),
        "the old one, which is still valid: {got:?}"
    );
    // Until it has expired, and not a moment longer.
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
async fn while_sts_denies_what_is_valid_is_served_to_its_end() {
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
async fn what_has_expired_is_never_served() {
    let (_, sessions) = sts(10, [Does::Gives(Duration::ZERO), Does::Fails(down())]);
    assert!(left(&sessions).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_sts_that_hands_out_what_is_all_but_dead_is_not_asked_without_end() {
    let (script, sessions) = sts(10, [Does::Gives(Duration::from_secs(2))]);
    for _ in 0..600 {
        let _ = left(&sessions).await;
        pass(Duration::from_millis(100)).await;
    }
    assert!(script.count() <= 62, "{}", script.count());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_leaves_no_session_and_no_renewal() {
    let (script, sessions) = sts(100, [hour()]);
    sessions.prefetch(&key("a"));
    sessions.prefetch(&key("a"));
    pass(Duration::from_millis(200)).await;
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.count(), 1);
    sessions.retain(&HashSet::from([key("a")]));
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    sessions.retain(&HashSet::new());
    pass(minutes(600)).await;
    assert_eq!(script.count(), 1);
    assert!(sessions.get(&key("a"), Instant::now()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_does_not_ask_for_everything_at_once_and_whoever_waits_goes_first() {
    let (script, sessions) = sts(100, [hour()]);
    for number in 0..250 {
        sessions.prefetch(&key(&number.to_string()));
    }
    pass(Duration::from_millis(10)).await;
    assert_eq!(script.count(), AHEAD);
    let start = Instant::now();
    assert!(sessions.get(&key("249"), soon()).await.is_ok());
    assert_eq!(start.elapsed(), Duration::from_millis(100), "one call's time");
    pass(Duration::from_secs(2)).await;
    assert_eq!(script.count(), 250);
}

#[tokio::test(start_paused = true)]
async fn sessions_that_differ_in_anything_are_not_shared() {
    let (script, sessions) = sts(10, [hour()]);
    let plain = key("a");
    let with = |change: fn(&mut SessionShape)| {
        let mut key = plain.clone();
        change(&mut key.shape);
        key
    };
    let keys = [
        plain.clone(),
        with(|shape| shape.external_id = Some("id".to_owned())),
        with(|shape| shape.name = SessionName::of_pod("apps", "b")),
        with(|shape| shape.tags = vec![("kubernetes-namespace", "apps".to_owned())]),
        with(|shape| shape.pod = Some("u".parse().unwrap())),
        SessionKey {
            role: "arn:aws:iam::123456789012:role/other".parse().unwrap(),
            ..plain.clone()
        },
        SessionKey {
            role: "arn:aws-cn:iam::123456789012:role/app".parse().unwrap(),
            ..plain.clone()
        },
    ];
    for (number, key) in keys.iter().enumerate() {
        let session = sessions.get(key, soon()).await.unwrap();
        let document = String::from_utf8(session.document().to_vec()).unwrap();
        assert!(
            document.contains(&format!("\"ASIA{}\"", number + 1)),
            "{document}"
        );
    }
    assert_eq!(script.count(), keys.len());
}
