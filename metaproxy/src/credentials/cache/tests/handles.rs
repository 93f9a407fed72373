use super::*;

/// Returns the access key of the session that is served without waiting. It has the number of the STS call that gave the
/// session.
fn served(sessions: &Cache, handle: &SessionHandle) -> Option<String> {
    let session = sessions.ready(&pod("a"), &key("a"), handle)?;
    Some(session.access_key_id().to_owned())
}

fn is_wanted(sessions: &Cache) -> bool {
    sessions.slot(&key("a")).borrow().phase == Phase::InUse
}

#[tokio::test(start_paused = true)]
async fn the_renewed_session_is_served_and_kept_in_use() {
    let (script, sessions) = sts(10, [hour()]);
    let handle = SessionHandle::default();
    assert_eq!(served(&sessions, &handle), None, "it is being fetched");
    pass(Duration::from_secs(1)).await;
    for number in 1..=4 {
        assert!(!is_wanted(&sessions), "no request has asked for this one yet");
        for _ in 0..3 {
            assert_eq!(served(&sessions, &handle), Some(format!("ASIA{number}")));
        }
        assert!(is_wanted(&sessions));
        while script.count() == number {
            pass(minutes(1)).await;
        }
        pass(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_session_is_not_served_by_its_handle() {
    let (script, sessions) = sts(10, [hour()]);
    let handle = SessionHandle::default();
    assert!(left(&sessions).await.is_ok());
    assert!(served(&sessions, &handle).is_some());
    sessions.retain(&HashSet::new());
    assert_eq!(served(&sessions, &handle), None);
    pass(Duration::from_secs(1)).await;
    assert_eq!(served(&sessions, &handle).as_deref(), Some("ASIA2"));
    assert_eq!(script.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_expired_session_is_not_served_by_its_handle() {
    let (script, sessions) = sts(10, [hour()]);
    let handle = SessionHandle::default();
    assert!(left(&sessions).await.is_ok());
    script.then(Does::Fails(down()));
    assert!(served(&sessions, &handle).is_some());
    pass(minutes(59)).await;
    assert!(left(&sessions).await.is_ok(), "STS was asked once more, in vain");
    assert!(served(&sessions, &handle).is_some());
    pass(minutes(1)).await;
    assert_eq!(served(&sessions, &handle), None);
}
