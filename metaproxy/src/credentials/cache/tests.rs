mod failures;
mod handles;
mod pacing;
mod renewal;

use super::state::Phase;
use super::*;
use crate::credentials::session::IssuedCredentials;
use crate::roles::SessionShape;
use crate::roles::session_name::SessionName;
use std::cell::Cell;
use std::collections::VecDeque;
use std::time::Duration;

/// What the fake STS does on one call.
#[derive(Clone, Debug)]
enum Does {
    /// It gives a session with this life.
    Gives(Duration),
    Fails(ObtainError),
}

/// A fake STS that follows a script, and repeats the last step of it.
#[derive(Debug)]
struct Script {
    takes: Duration,
    does: Mutex<VecDeque<Does>>,
    /// The moment of each call, and the session name in it.
    calls: Mutex<Vec<(Instant, String)>>,
}

impl Script {
    fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Returns the minutes from the first call to each call.
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
                let issued = IssuedCredentials {
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
    /// The time of tokio's paused clock when the test first read it, and the time of day of that moment.
    static START: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
}

/// Returns the time of day by tokio's clock, so that tests can pause and move it. The runtimes of the tests have one
/// thread.
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
            tags: crate::roles::SessionTags::default(),
            pod: None,
            principal: crate::roles::Principal::Node,
        },
    }
}

/// Returns the UID of the pod that has the session of this name.
fn pod(name: &str) -> PodUid {
    format!("uid-of-{name}").parse().unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(850)
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

type Cache = Sessions<Arc<Script>>;

/// Asks for the session, and returns its remaining life.
async fn left(sessions: &Cache) -> Result<Duration, ObtainError> {
    match sessions.get(&pod("a"), &key("a"), soon()).await {
        Ok(session) => Ok(session.left(clock())),
        Err(SessionError::Obtain(error)) => Err(error),
        Err(other) => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn five_hundred_requests_that_wait_cost_one_call() {
    let (script, sessions) = sts(100, [hour()]);
    let waiting: Vec<_> = (0..500)
        .map(|_| {
            let sessions = sessions.clone();
            tokio::spawn(async move { sessions.get(&pod("a"), &key("a"), soon()).await.is_ok() })
        })
        .collect();
    for each in waiting {
        assert!(each.await.unwrap());
    }
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_cancelled_does_not_stop_the_call() {
    let (script, sessions) = sts(100, [hour()]);
    let waiter = tokio::spawn({
        let sessions = sessions.clone();
        async move { sessions.get(&pod("a"), &key("a"), soon()).await }
    });
    tokio::task::yield_now().await;
    waiter.abort();
    assert!(left(&sessions).await.is_ok());
    assert_eq!(script.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_makes_few_calls_at_once_and_a_request_that_waits_goes_first() {
    let (script, sessions) = sts(100, [hour()]);
    for number in 0..250 {
        sessions.prefetch(&pod(&number.to_string()), &key(&number.to_string()));
    }
    pass(Duration::from_millis(10)).await;
    assert_eq!(script.count(), MAX_BACKGROUND_CALLS);
    let start = Instant::now();
    assert!(sessions.get(&pod("249"), &key("249"), soon()).await.is_ok());
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
        with(|shape| shape.tags.pairs = vec![("kubernetes-namespace", "apps".to_owned())]),
        with(|shape| {
            shape.tags.pairs = vec![("kubernetes-namespace", "apps".to_owned())];
            shape.tags.are_transitive = true;
        }),
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
        let pod = pod(&number.to_string());
        let session = sessions.get(&pod, key, soon()).await.unwrap();
        let document = String::from_utf8(session.document().to_vec()).unwrap();
        assert!(
            document.contains(&format!("\"ASIA{}\"", number + 1)),
            "{document}"
        );
    }
    assert_eq!(script.count(), keys.len());
}
