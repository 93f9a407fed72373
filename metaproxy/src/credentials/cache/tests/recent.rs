use super::*;

/// Which session a connection is served, by the number of the call that gave it.
fn served(sessions: &Cache, handle: &SessionHandle, recent: &mut RecentSession) -> Option<String> {
    let session = sessions.ready(&pod("a"), &key("a"), handle, recent)?;
    Some(session.access_key_id().to_owned())
}

fn is_wanted(sessions: &Cache) -> bool {
    sessions.slot(&key("a")).borrow().phase == Phase::InUse
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_stays_is_served_what_was_renewed_and_keeps_it_wanted() {
    let (script, sessions) = sts(10, [hour()]);
    let (handle, mut recent) = (SessionHandle::default(), RecentSession::default());
    assert_eq!(
        served(&sessions, &handle, &mut recent),
        None,
        "it is being fetched"
    );
    pass(Duration::from_secs(1)).await;
    for number in 1..=4 {
        assert!(!is_wanted(&sessions), "no request has asked for this one yet");
        for _ in 0..3 {
            assert_eq!(
                served(&sessions, &handle, &mut recent),
                Some(format!("ASIA{number}"))
            );
        }
        assert!(is_wanted(&sessions));
        while script.count() == number {
            pass(minutes(1)).await;
        }
        pass(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_not_served_to_a_connection_that_had_it() {
    let (script, sessions) = sts(10, [hour()]);
    let (handle, mut recent) = (SessionHandle::default(), RecentSession::default());
    assert!(left(&sessions).await.is_ok());
    assert!(served(&sessions, &handle, &mut recent).is_some());
    sessions.retain(&HashSet::new());
    assert_eq!(served(&sessions, &handle, &mut recent), None);
    pass(Duration::from_secs(1)).await;
    assert_eq!(served(&sessions, &handle, &mut recent).as_deref(), Some("ASIA2"));
    assert_eq!(script.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_served_nothing_that_has_expired() {
    let (script, sessions) = sts(10, [hour()]);
    let (handle, mut recent) = (SessionHandle::default(), RecentSession::default());
    assert!(left(&sessions).await.is_ok());
    script.then(Does::Fails(down()));
    assert!(served(&sessions, &handle, &mut recent).is_some());
    pass(minutes(59)).await;
    assert!(left(&sessions).await.is_ok(), "STS was asked once more, in vain");
    assert!(served(&sessions, &handle, &mut recent).is_some());
    pass(minutes(1)).await;
    assert_eq!(served(&sessions, &handle, &mut recent), None);
}
