//! Tests each transition. A row is a state and an event, and the result.

use super::*;
use proptest::prelude::*;
use rstest::rstest;
use std::sync::LazyLock;

use Asker::{Prefetch, Request, RequestAtDeadline};
use Failed::{LongAgo, Never, Recently};
use Has::{Enough, Expired, Little, Nothing, Young};
use Phase::{Forgotten, Idle, InUse, LetGo, Retrying, Unused};

static START: LazyLock<Now> = LazyLock::new(|| Now {
    wall: SystemTime::now(),
    monotonic: Instant::now(),
});

const NONE: Next = Next::Nothing;
const CALLS: u64 = 7;

fn minutes(n: u64) -> Duration {
    Duration::from_secs(n * 60)
}

/// The moment of each row, an hour after the earliest thing that a state remembers.
fn now() -> Now {
    later(minutes(60))
}

fn later(by: Duration) -> Now {
    Now {
        wall: START.wall + by,
        monotonic: START.monotonic + by,
    }
}

fn calling() -> Phase {
    Phase::Calling { awaited_since: None }
}

/// A call that a request has waited for since this moment.
fn awaited_now() -> Phase {
    Phase::Calling {
        awaited_since: Some(now().monotonic),
    }
}

fn awaited_before() -> Phase {
    Phase::Calling {
        awaited_since: Some(START.monotonic),
    }
}

fn forgotten_calling() -> Phase {
    Phase::ForgottenCalling { awaited_since: None }
}

fn forgotten_awaited_now() -> Phase {
    Phase::ForgottenCalling {
        awaited_since: Some(now().monotonic),
    }
}

fn timer(after: Duration) -> Next {
    Next::Timer { after, calls: CALLS }
}

/// The session that a state has, which lives an hour.
#[derive(Clone, Copy, Debug)]
enum Has {
    Nothing,
    /// In the first half of its life: 50 minutes left.
    Young,
    /// Past half its life, with 28 minutes left.
    Enough,
    /// 10 minutes left.
    Little,
    Expired,
}

impl Has {
    fn session(self) -> Option<Session> {
        let age = match self {
            Nothing => return None,
            Young => minutes(10),
            Enough => minutes(32),
            Little => minutes(50),
            Expired => minutes(60),
        };
        Some(session(now().wall - age, minutes(60)))
    }
}

fn session(obtained: SystemTime, life: Duration) -> Session {
    let issued = crate::credentials::IssuedCredentials {
        access_key_id: "ASIA",
        secret_access_key: "S",
        token: "T",
        expiration: obtained + life,
    };
    let role = "arn:aws:iam::123456789012:role/app".parse().unwrap();
    Session::new(&role, &issued, obtained)
}

/// How the last call failed, if it did.
#[derive(Clone, Copy, Debug)]
enum Failed {
    Never,
    /// Requests start no call yet.
    Recently,
    /// Requests start another call.
    LongAgo,
}

impl Failed {
    fn failure(self) -> Option<Failure> {
        let retry_at = match self {
            Never => return None,
            Recently => now().monotonic + Duration::from_secs(1),
            LongAgo => now().monotonic,
        };
        Some(Failure {
            error: denied(),
            retry_at,
            attempts: 1,
            since: START.monotonic,
        })
    }
}

fn denied() -> ObtainError {
    ObtainError::Denied("no".to_owned())
}

fn down() -> ObtainError {
    ObtainError::Unavailable("down".to_owned())
}

fn pod() -> PodUid {
    "uid-of-a".parse().unwrap()
}

fn state(phase: Phase, has: Has, failed: Failed) -> State {
    State {
        phase,
        session: has.session(),
        failure: failed.failure(),
        turn: Turn::Taken,
        calls: CALLS,
    }
}

/// The answer to an asker, without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gets {
    Served,
    Waits,
    /// The failure that is remembered.
    Denied,
    /// STS has not answered yet.
    Late,
    Paced,
    Forgotten,
}

impl From<Answer> for Gets {
    fn from(answer: Answer) -> Self {
        match answer {
            Answer::Serve(_) => Self::Served,
            Answer::Wait => Self::Waits,
            Answer::Fail(SessionError::Obtain(ObtainError::Denied(_))) => Self::Denied,
            Answer::Fail(SessionError::Obtain(_)) => Self::Late,
            Answer::Fail(SessionError::Paced) => Self::Paced,
            Answer::Fail(SessionError::Forgotten) => Self::Forgotten,
        }
    }
}

/// Columns: (phase, session, last failure), asker | phase after, what the asker gets, (what the task does, whether
/// tasks that wait are notified).
#[rstest]
#[case::first_request((Idle, Nothing, Never), Request, awaited_now(), Gets::Waits, (Next::Call, false))]
#[case::first_at_deadline((Idle, Nothing, Never), RequestAtDeadline, calling(), Gets::Late, (Next::Call, false))]
#[case::pod_appears((Idle, Nothing, Never), Prefetch, calling(), Gets::Late, (Next::Call, false))]
#[case::failed_recently((Idle, Nothing, Recently), Request, Idle, Gets::Denied, (NONE, false))]
#[case::failed_long_ago((Idle, Nothing, LongAgo), Request, awaited_now(), Gets::Waits, (Next::Call, false))]
#[case::failed_and_valid((Idle, Young, LongAgo), Request, Idle, Gets::Served, (NONE, false))]
#[case::expired((Idle, Expired, Never), Request, awaited_now(), Gets::Waits, (Next::Call, false))]
#[case::call_of_no_request((calling(), Nothing, Never), Request, awaited_now(), Gets::Waits, (NONE, true))]
#[case::call_of_a_request((awaited_before(), Nothing, Never), Request, awaited_before(), Gets::Waits, (NONE, false))]
#[case::call_at_deadline((calling(), Nothing, Never), RequestAtDeadline, calling(), Gets::Late, (NONE, false))]
#[case::call_and_young((calling(), Young, Never), Request, calling(), Gets::Served, (NONE, false))]
#[case::call_and_enough((calling(), Enough, Never), Request, calling(), Gets::Served, (NONE, false))]
#[case::call_and_little((calling(), Little, Never), Request, awaited_now(), Gets::Waits, (NONE, true))]
#[case::call_and_little_at_deadline((awaited_before(), Little, Never), RequestAtDeadline, awaited_before(), Gets::Served, (NONE, false))]
#[case::unused((Unused, Young, Never), Request, InUse, Gets::Served, (NONE, false))]
#[case::unused_and_another_pod((Unused, Young, Never), Prefetch, InUse, Gets::Served, (NONE, false))]
#[case::in_use((InUse, Young, Never), Request, InUse, Gets::Served, (NONE, false))]
#[case::in_use_past_half((InUse, Enough, Never), Request, calling(), Gets::Served, (Next::Call, false))]
#[case::retrying((Retrying, Enough, Recently), Request, Retrying, Gets::Served, (NONE, false))]
#[case::retrying_with_little((Retrying, Little, Recently), Request, Retrying, Gets::Served, (NONE, false))]
#[case::retrying_expired((Retrying, Expired, Recently), Request, Retrying, Gets::Denied, (NONE, false))]
#[case::retrying_when_due((Retrying, Little, LongAgo), Request, awaited_now(), Gets::Waits, (Next::Call, false))]
#[case::retrying_at_deadline((Retrying, Little, LongAgo), RequestAtDeadline, calling(), Gets::Served, (Next::Call, false))]
#[case::let_go_and_young((LetGo, Young, Never), Request, calling(), Gets::Served, (Next::Call, false))]
#[case::let_go_with_little((LetGo, Little, Never), Request, awaited_now(), Gets::Waits, (Next::Call, false))]
#[case::forgotten((Forgotten, Nothing, Never), Request, Forgotten, Gets::Forgotten, (NONE, false))]
#[case::forgotten_and_failed((Forgotten, Nothing, Recently), Request, Forgotten, Gets::Denied, (NONE, false))]
#[case::forgotten_and_valid((Forgotten, Little, Never), Request, Forgotten, Gets::Served, (NONE, false))]
#[case::forgotten_during_call((forgotten_calling(), Nothing, Never), Request, forgotten_awaited_now(), Gets::Waits, (NONE, true))]
fn asked(
    #[case] (phase, has, failed): (Phase, Has, Failed),
    #[case] by: Asker,
    #[case] phase_after: Phase,
    #[case] gets: Gets,
    #[case] (next, notify): (Next, bool),
) {
    let event = Event::Asked { pod: &pod(), by };
    let (after, actions) = step(state(phase, has, failed), event, now());
    let got = actions.answer.map(Gets::from);
    assert_eq!(
        (after.phase, got, actions.next, actions.notify),
        (phase_after, Some(gets), next, notify)
    );
    assert_eq!(after.calls, CALLS);
}

#[test]
fn a_request_at_its_deadline_learns_that_its_pod_is_paced_and_another_pod_is_looked_at() {
    let mut before = state(calling(), Nothing, Never);
    before.turn = Turn::Awaited {
        pods: vec![pod()],
        until: Some(now().monotonic),
    };
    let (one, another) = (pod(), "uid-of-b".parse().unwrap());
    let at_deadline = |pod| Event::Asked {
        pod,
        by: RequestAtDeadline,
    };
    let (after, actions) = step(before, at_deadline(&one), now());
    assert_eq!(
        (actions.answer.map(Gets::from), actions.notify),
        (Some(Gets::Paced), false)
    );
    let (_, actions) = step(after, at_deadline(&another), now());
    assert!(actions.notify);
}

/// How a call ends.
#[derive(Clone, Debug)]
enum Ends {
    Gives(Duration),
    Fails(ObtainError),
    Dropped,
}

/// Columns: phase, end of the call | phase after, what the task does.
#[rstest]
#[case::session(calling(), Ends::Gives(minutes(60)), Unused, timer(minutes(30)))]
#[case::session_that_is_about_to_expire(
    calling(),
    Ends::Gives(Duration::ZERO),
    Unused,
    timer(Duration::from_secs(1))
)]
#[case::denied(awaited_before(), Ends::Fails(denied()), Idle, NONE)]
#[case::no_token(calling(), Ends::Fails(ObtainError::NoToken(String::new())), Idle, NONE)]
#[case::unavailable(calling(), Ends::Fails(down()), Retrying, timer(Duration::from_millis(500)))]
#[case::dropped(awaited_before(), Ends::Dropped, Idle, NONE)]
#[case::session_of_no_pod(forgotten_calling(), Ends::Gives(minutes(60)), Forgotten, NONE)]
#[case::unavailable_for_no_pod(forgotten_awaited_now(), Ends::Fails(down()), Forgotten, NONE)]
#[case::dropped_for_no_pod(forgotten_calling(), Ends::Dropped, Forgotten, NONE)]
fn call_over(#[case] phase: Phase, #[case] ends: Ends, #[case] phase_after: Phase, #[case] next: Next) {
    let result = |result| Event::CallEnded {
        result,
        began: now().monotonic,
        jitter: 0.0,
    };
    let event = match ends.clone() {
        Ends::Gives(life) => result(Ok(session(now().wall, life))),
        Ends::Fails(error) => result(Err(error)),
        Ends::Dropped => Event::CallDropped,
    };
    let mut before = state(phase, Nothing, Never);
    before.calls -= 1;
    let (after, actions) = step(before, event, now());
    assert_eq!(
        (after.phase, actions.next, actions.notify),
        (phase_after, next, true)
    );
    assert_eq!(after.calls, CALLS);
    assert_eq!(after.session.is_some(), matches!(ends, Ends::Gives(_)));
    assert_eq!(after.failure.is_some(), matches!(ends, Ends::Fails(_)));
    assert_eq!(actions.report.is_some(), !matches!(ends, Ends::Dropped));
}

/// Columns: phase, session | phase after, what the task does.
#[rstest]
#[case::in_use(InUse, Young, calling(), Next::Call)]
#[case::retrying(Retrying, Nothing, calling(), Next::Call)]
#[case::unused(Unused, Young, LetGo, timer(minutes(50)))]
#[case::unused_and_expired(Unused, Expired, Idle, NONE)]
#[case::let_go_and_not_over(LetGo, Little, LetGo, timer(minutes(10)))]
#[case::let_go_and_over(LetGo, Expired, Idle, NONE)]
#[case::idle(Idle, Young, Idle, NONE)]
#[case::calling(calling(), Young, calling(), NONE)]
#[case::forgotten(Forgotten, Young, Forgotten, NONE)]
#[case::forgotten_during_call(forgotten_calling(), Young, forgotten_calling(), NONE)]
fn timer_fired(#[case] phase: Phase, #[case] has: Has, #[case] phase_after: Phase, #[case] next: Next) {
    let event = Event::TimerFired { calls: CALLS };
    let (after, actions) = step(state(phase, has, Never), event, now());
    assert_eq!((after.phase, actions.next), (phase_after, next));
    let is_dropped = phase_after == Idle && phase != Idle;
    assert_eq!(
        (after.session.is_none(), actions.notify),
        (is_dropped || matches!(has, Nothing), is_dropped)
    );

    let void = Event::TimerFired { calls: CALLS - 1 };
    let (after, actions) = step(state(phase, has, Never), void, now());
    assert_eq!((after.phase, actions.next), (phase, NONE));
}

#[rstest]
#[case(Idle, Forgotten)]
#[case(Unused, Forgotten)]
#[case(InUse, Forgotten)]
#[case(Retrying, Forgotten)]
#[case(LetGo, Forgotten)]
#[case(Forgotten, Forgotten)]
#[case(calling(), forgotten_calling())]
#[case(awaited_now(), forgotten_awaited_now())]
#[case(forgotten_awaited_now(), forgotten_awaited_now())]
fn session_forgotten(#[case] phase: Phase, #[case] phase_after: Phase) {
    let (after, actions) = step(state(phase, Young, Never), Event::Forgotten, now());
    assert_eq!(
        (after.phase, actions.next, actions.notify),
        (phase_after, NONE, true)
    );
}

#[test]
fn failures_are_counted_from_the_first_one_and_backed_off_for_requests_and_in_the_background() {
    let (mut state, mut waits) = (State::default(), Vec::new());
    for attempt in 1..=12 {
        state.phase = calling();
        let event = Event::CallEnded {
            result: Err(down()),
            began: later(minutes(attempt)).monotonic,
            jitter: 1.0,
        };
        let (after, actions) = step(state, event, now());
        let failure = after.failure.as_ref().unwrap();
        assert_eq!(u64::from(failure.attempts), attempt);
        assert_eq!(failure.since, later(minutes(1)).monotonic);
        let Next::Timer {
            after: background, ..
        } = actions.next
        else {
            panic!("{actions:?}");
        };
        let request = failure.retry_at - now().monotonic;
        waits.push((request.as_secs_f64(), background.as_secs_f64()));
        state = after;
    }
    let last = [(30.0, 256.0), (30.0, 512.0), (30.0, 600.0), (30.0, 600.0)];
    assert_eq!(waits[..3], [(0.5, 1.0), (1.0, 2.0), (2.0, 4.0)]);
    assert_eq!(waits[8..], last);
}

fn any_event() -> impl Strategy<Value = (u8, u64)> {
    (0..9_u8, prop_oneof![Just(0), 1..60_u64, 60..4000_u64])
}

proptest! {
    /// These promises hold for any events in any order: there is one call at a time, there is none for a forgotten
    /// session, and no expired session is served.
    #[test]
    fn promises_hold_in_any_order_of_events(events in proptest::collection::vec(any_event(), 1..200)) {
        let (mut state, mut seconds, mut timer) = (State::default(), 0, None);
        for (kind, pause) in events {
            seconds += pause;
            let now = later(Duration::from_secs(seconds));
            let (was_calling, was_forgotten) = (state.phase.is_calling(), state.phase.is_forgotten());
            let pod = pod();
            let ended = |result| Event::CallEnded { result, began: now.monotonic, jitter: 0.5 };
            let event = match kind {
                0..=2 => Event::Asked { pod: &pod, by: [Request, RequestAtDeadline, Prefetch][kind as usize] },
                3 if was_calling => ended(Ok(session(now.wall, minutes(60)))),
                4 if was_calling => ended(Err(down())),
                5 if was_calling => ended(Err(denied())),
                6 if was_calling => Event::CallDropped,
                7 if seconds > 8000 => Event::Forgotten,
                _ => Event::TimerFired { calls: timer.unwrap_or_default() },
            };
            let (after, actions) = step(state, event, now);
            if actions.next == Next::Call {
                let starts = matches!(after.phase, Phase::Calling { .. });
                prop_assert!(starts && !was_calling && !was_forgotten);
            }
            if let Next::Timer { calls, .. } = actions.next {
                timer = Some(calls);
            }
            match actions.answer {
                Some(Answer::Serve(session)) => prop_assert!(!session.left(now.wall).is_zero()),
                Some(Answer::Wait) => prop_assert!(after.phase.awaited_since().is_some()),
                _ => {}
            }
            let keeps_promise = match after.phase {
                Unused | InUse | LetGo => after.session.is_some() && after.failure.is_none(),
                Retrying => after.failure.is_some(),
                _ => true,
            };
            prop_assert!(keeps_promise, "{after:?}");
            prop_assert!(!was_forgotten || after.phase.is_forgotten());
            state = after;
        }
    }
}
