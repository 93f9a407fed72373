use super::*;
use crate::credentials::Principal;
use crate::roles::session_name::SessionName;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Plays STS: answers in order, the last one for ever.
#[derive(Debug)]
struct Script {
    calls: AtomicUsize,
    takes: Duration,
    answers: Mutex<VecDeque<Result<Duration, ObtainError>>>,
}

impl Issuer for Arc<Script> {
    async fn issue(&self, _key: &SessionKey) -> Result<Session, ObtainError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(self.takes).await;
        let mut answers = self.answers.lock().unwrap();
        let answer = if answers.len() > 1 {
            answers.pop_front().unwrap()
        } else {
            answers[0].clone()
        };
        answer.map(|left| {
            // Obtained so long ago that `left` of an hour is left.
            let expiration = SystemTime::now() + left;
            Session::new("A", "S", "T", expiration, expiration - Duration::from_secs(3600))
        })
    }
}

fn sts<const N: usize>(
    takes: u64,
    answers: [Result<Duration, ObtainError>; N],
) -> (Arc<Script>, Sessions<Arc<Script>>) {
    let script = Arc::new(Script {
        calls: AtomicUsize::new(0),
        takes: Duration::from_millis(takes),
        answers: Mutex::new(answers.into()),
    });
    (Arc::clone(&script), Sessions::new(script))
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

fn key(name: &str) -> SessionKey {
    SessionKey {
        role: "arn:aws:iam::123456789012:role/app".parse().unwrap(),
        principal: Principal::Node { through: None },
        external_id: None,
        session_name: SessionName::of_pod("apps", name),
        tags: Vec::new(),
        pod: None,
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(850)
}

fn denied() -> ObtainError {
    ObtainError::Denied("no".to_owned())
}

fn down() -> ObtainError {
    ObtainError::Unavailable("down".to_owned())
}

#[tokio::test(start_paused = true)]
async fn five_hundred_that_wait_cost_one_call() {
    let (script, sessions) = sts(100, [Ok(minutes(60))]);
    let waiting: Vec<_> = (0..500)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.get(&key("a"), soon()).await.is_ok() })
        })
        .collect();
    for each in waiting {
        assert!(each.await.unwrap());
    }
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slow_sts_is_given_up_on_in_time_and_its_answer_kept() {
    let (script, sessions) = sts(5_000, [Ok(minutes(60))]);
    let start = Instant::now();
    assert!(matches!(
        sessions.get(&key("a"), soon()).await,
        Err(ObtainError::Unavailable(_))
    ));
    assert_eq!(start.elapsed(), Duration::from_millis(850));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_goes_away_does_not_stop_the_fetch() {
    let (script, sessions) = sts(100, [Ok(minutes(60))]);
    let waiter = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.get(&key("a"), soon()).await }
    });
    tokio::task::yield_now().await;
    waiter.abort();
    assert!(sessions.get(&key("a"), soon()).await.is_ok());
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_denied_role_is_asked_for_once_in_30_seconds() {
    let (script, sessions) = sts(10, [Err(denied())]);
    for _ in 0..100 {
        assert_eq!(sessions.get(&key("a"), soon()).await.unwrap_err(), denied());
        tokio::time::sleep(Duration::from_millis(290)).await;
    }
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let _ = sessions.get(&key("a"), soon()).await;
    assert_eq!(script.calls.load(Ordering::SeqCst), 2);
    let _ = sessions.get(&key("b"), soon()).await;
    assert_eq!(
        script.calls.load(Ordering::SeqCst),
        3,
        "another session is not affected"
    );
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_backed_off_and_forgotten() {
    let (script, sessions) = sts(10, [Err(down()), Err(down()), Ok(minutes(60))]);
    assert_eq!(sessions.get(&key("a"), soon()).await.unwrap_err(), down());
    assert_eq!(sessions.get(&key("a"), soon()).await.unwrap_err(), down());
    assert_eq!(script.calls.load(Ordering::SeqCst), 1, "not asked again at once");
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(sessions.get(&key("a"), soon()).await.unwrap_err(), down());
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(
        sessions.get(&key("a"), soon()).await.is_err(),
        "the second pause is longer"
    );
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert!(sessions.get(&key("a"), soon()).await.is_ok());
    assert_eq!(script.calls.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn past_half_its_life_a_session_is_served_and_renewed_behind() {
    let (script, sessions) = sts(5_000, [Ok(minutes(29)), Ok(minutes(60))]);
    let _ = sessions.get(&key("a"), Instant::now() + minutes(1)).await;
    let start = Instant::now();
    let session = sessions.get(&key("a"), soon()).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody waits for the renewal");
    assert!(session.left(SystemTime::now()) < minutes(30));
    tokio::time::sleep(Duration::from_secs(6)).await;
    let session = sessions.get(&key("a"), soon()).await.unwrap();
    assert!(session.left(SystemTime::now()) > minutes(55));
    assert_eq!(script.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn with_little_left_a_new_session_is_waited_for_and_the_old_one_served_where_it_does_not_come() {
    let (_, sessions) = sts(100, [Ok(minutes(10)), Ok(minutes(60))]);
    let _ = sessions.get(&key("a"), soon()).await;
    let session = sessions.get(&key("a"), soon()).await.unwrap();
    assert!(session.left(SystemTime::now()) > minutes(55), "the new one");

    let (_, sessions) = sts(100, [Ok(minutes(10)), Err(down())]);
    let _ = sessions.get(&key("a"), soon()).await;
    let session = sessions.get(&key("a"), soon()).await.unwrap();
    assert!(
        session.left(SystemTime::now()) <= minutes(10),
        "the old one, which is still valid"
    );
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_is_never_served() {
    let (_, sessions) = sts(10, [Ok(Duration::ZERO), Err(down())]);
    assert!(sessions.get(&key("a"), soon()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_prefetched_session_is_there_and_one_that_is_not_kept_is_forgotten() {
    let (script, sessions) = sts(100, [Ok(minutes(60))]);
    sessions.prefetch(&key("a"));
    sessions.prefetch(&key("a"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    assert_eq!(script.calls.load(Ordering::SeqCst), 1);
    sessions.retain(&HashSet::from([key("a")]));
    assert!(sessions.get(&key("a"), Instant::now()).await.is_ok());
    sessions.retain(&HashSet::new());
    assert!(sessions.get(&key("a"), Instant::now()).await.is_err());
}
