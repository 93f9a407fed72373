//! What a connection keeps of its last request. As long as nothing has changed, the next request is answered from it and
//! takes no lock that other connections take.

use std::sync::Arc;

use tokio::sync::watch;

use super::ImdsV1Policy;
use super::decisions::{Decisions, PodDecision};
use crate::cached_watch::{CachedWatch, Changes};
use crate::credentials::RecentSession;
use crate::identify::Client;
use crate::pods::{Inventory, Pods};
use crate::roles::Rules;

/// The memory of one connection, and so of one client.
#[derive(Debug)]
pub struct Recent<'a> {
    client: &'a Client,
    pods: Changes<Arc<Inventory>>,
    rules: Changes<Arc<Rules>>,
    last: Option<(Arc<PodDecision>, RecentSession)>,
    imds_v1: CachedWatch<ImdsV1Policy>,
}

impl<'a> Recent<'a> {
    /// Makes the memory of a connection without a request so far.
    pub fn new(
        client: &'a Client,
        pods: Pods,
        rules: watch::Receiver<Arc<Rules>>,
        imds_v1: watch::Receiver<ImdsV1Policy>,
    ) -> Self {
        Self {
            client,
            pods: Changes::new(pods),
            rules: Changes::new(rules),
            last: None,
            imds_v1: CachedWatch::new(imds_v1),
        }
    }

    /// Returns the client of the connection.
    pub fn client(&self) -> &'a Client {
        self.client
    }

    /// Returns whether requests without a session token are answered.
    pub fn imds_v1(&mut self) -> ImdsV1Policy {
        self.imds_v1.now()
    }

    /// Returns what is decided about the client at this moment, and the session that this connection was served last for it.
    pub fn decided(&mut self, decisions: &Decisions) -> (&Arc<PodDecision>, &mut RecentSession) {
        // Each reports a change once, so both are asked, and before a new decision so that no change is missed.
        if self.pods.any() | self.rules.any() {
            self.last = None;
        }
        let client = self.client;
        let (decided, session) = self
            .last
            .get_or_insert_with(|| (decisions.of(client), RecentSession::default()));
        (decided, session)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::credentials::{
        IssuedCredentials, Issuer, MAX_SESSIONS_AT_ONCE, ObtainError, Session, SessionKey, Sessions,
    };
    use crate::imds::Passthrough;
    use crate::imds::decisions::tests::{client, decisions, inventory, role};
    use crate::imds::handler::{ANSWER_TIMEOUT, Handler, Parts};
    use crate::imds::path::Paths;
    use crate::imds::response;
    use crate::imds::token::Tokens;
    use crate::imds::upstream::Upstream;
    use crate::roles::Decision;
    use http_body_util::BodyExt as _;
    use hyper::{Request, StatusCode};
    use std::collections::HashSet;
    use std::time::{Duration, SystemTime};

    const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

    #[test]
    fn a_change_counts_with_the_next_request_of_an_open_connection() {
        let (pods, rules, decisions) = decisions("one");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let client = client(UID);
        let mut recent = Recent::new(&client, pods.subscribe(), rules.subscribe(), imds_v1);
        let first = Arc::clone(recent.decided(&decisions).0);
        assert!(
            Arc::ptr_eq(&first, recent.decided(&decisions).0),
            "looked up once"
        );
        assert_eq!(role(recent.decided(&decisions).0), Some("one"));
        pods.send_replace(inventory("other"));
        assert_eq!(role(recent.decided(&decisions).0), Some("other"));
        rules.send_modify(|rules| Arc::make_mut(rules).firewall = true);
        assert!(matches!(**recent.decided(&decisions).0, Decision::NoRole(_)));
        pods.send_replace(Arc::default());
        rules.send_modify(|rules| Arc::make_mut(rules).firewall = false);
        assert!(matches!(**recent.decided(&decisions).0, Decision::Wait(_)));
        assert!(matches!(**recent.decided(&decisions).0, Decision::Wait(_)));
    }

    #[test]
    fn whether_tokens_are_required_counts_too() {
        let (pods, rules, _) = decisions("one");
        let (publish, imds_v1) = watch::channel(ImdsV1Policy::Unknown);
        let client = client(UID);
        let mut recent = Recent::new(&client, pods.subscribe(), rules.subscribe(), imds_v1);
        assert_eq!(recent.imds_v1(), ImdsV1Policy::Unknown);
        publish.send_replace(ImdsV1Policy::Denied);
        assert_eq!(recent.imds_v1(), ImdsV1Policy::Denied);
    }

    /// Whose access key is the role's name.
    pub(in crate::imds) struct ByName;

    impl Issuer for ByName {
        async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
            let now = SystemTime::now();
            let issued = IssuedCredentials {
                access_key_id: key.role.name(),
                secret_access_key: "S",
                token: "T",
                expiration: now + Duration::from_secs(3600),
            };
            Ok(Session::new(&key.role, &issued, now))
        }
    }

    /// With sessions at once, and no metadata service of the node.
    pub(in crate::imds) fn handler(
        pods: Pods,
        rules: watch::Receiver<Arc<Rules>>,
        imds_v1: watch::Receiver<ImdsV1Policy>,
    ) -> Handler<ByName> {
        handler_with(Sessions::new(ByName), NOBODY, pods, rules, imds_v1)
    }

    /// Where no metadata handler is.
    const NOBODY: &str = "http://127.0.0.1:1";

    pub(in crate::imds) fn handler_with<I: Issuer>(
        sessions: Sessions<I>,
        imds: &str,
        pods: Pods,
        rules: watch::Receiver<Arc<Rules>>,
        imds_v1: watch::Receiver<ImdsV1Policy>,
    ) -> Handler<I> {
        let dir = tempfile::tempdir().unwrap();
        Handler::new(Parts {
            pods,
            rules,
            sessions,
            tokens: Tokens::open(dir.path()).unwrap(),
            paths: Paths::default(),
            passthrough: Passthrough::new(Upstream::new(imds.parse().unwrap())),
            imds_v1,
        })
    }

    fn request(role: &str) -> Request<()> {
        let path = format!("/latest/meta-data/iam/security-credentials/{role}");
        Request::get(path).body(()).unwrap()
    }

    /// Asks as connections do: without waiting if possible.
    async fn asked(handler: &Handler<ByName>, recent: &mut Recent<'_>, role: &str) -> (StatusCode, String) {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let answer = match handler.try_answer(recent, &request(role)) {
            Ok(answer) => answer,
            Err(pending) => handler.finish(recent.client(), pending, deadline).await,
        };
        let answer = response::of(answer.outcome, answer.token_left);
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_waits_for_a_turn_while_the_role_changes_is_answered_for_the_role_that_is() {
        let (pods, rules, _) = decisions("one");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let sessions = Sessions::new(ByName);
        let handler = handler_with(
            sessions.clone(),
            NOBODY,
            pods.subscribe(),
            rules.subscribe(),
            imds_v1,
        );
        let client = client(UID);
        let mut recent = handler.recent(&client);
        for number in 0..MAX_SESSIONS_AT_ONCE {
            let role = format!("role-{number}");
            pods.send_replace(inventory(&role));
            assert_eq!(asked(&handler, &mut recent, &role).await.0, StatusCode::OK);
        }
        pods.send_replace(inventory("next"));
        let change = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            pods.send_replace(inventory("last"));
            sessions.retain(&HashSet::new());
        };
        let ((status, _), ()) = tokio::join!(asked(&handler, &mut recent, "next"), change);
        assert_eq!(status, StatusCode::NOT_FOUND, "that is not its role any more");
        let (status, document) = asked(&handler, &mut recent, "last").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            document.contains("new sessions of pod apps/web are paced"),
            "{document}"
        );
        // The cache may lag behind the pods, and forget what is a pod's again: the request goes on waiting for it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let forget = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sessions.retain(&HashSet::new());
        };
        let ((status, _), ()) = tokio::join!(asked(&handler, &mut recent, "last"), forget);
        assert_eq!(status, StatusCode::OK);
    }

    #[tokio::test]
    async fn an_open_connection_is_never_served_the_session_of_a_role_that_was() {
        let (pods, rules, _) = decisions("one");
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let handler = handler(pods.subscribe(), rules.subscribe(), imds_v1);
        let client = client(UID);
        let mut recent = handler.recent(&client);
        for now in ["one", "other", "one"] {
            pods.send_replace(inventory(now));
            for _ in 0..3 {
                let (status, document) = asked(&handler, &mut recent, now).await;
                assert_eq!(status, StatusCode::OK);
                assert!(
                    document.contains(&format!("\"AccessKeyId\": \"{now}\"")),
                    "{document}"
                );
            }
            let was = if now == "one" { "other" } else { "one" };
            assert_eq!(asked(&handler, &mut recent, was).await.0, StatusCode::NOT_FOUND);
        }
        pods.send_replace(Arc::default());
        let at_once = handler.try_answer(&mut recent, &request("one"));
        assert!(at_once.is_err(), "the pod is gone");
    }
}
