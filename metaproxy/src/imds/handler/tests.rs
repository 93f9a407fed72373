use super::*;
use crate::credentials::{IssuedCredentials, MAX_SESSIONS_AT_ONCE, ObtainError, Session, SessionKey};
use crate::imds::decisions::tests::{client, decisions, inventory};
use crate::imds::response;
use crate::imds::upstream::Upstream;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rstest::rstest;
use std::collections::HashSet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";
const LIST: &str = "ami-id\nhostname\niam/\ninstance-id\npublic-keys/\n";

/// A metadata service of the node without session tokens, which answers everything with [`LIST`].
async fn node() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await.unwrap();
            let status = if head[..length].starts_with(b"PUT") {
                "404 Not Found"
            } else {
                "200 OK"
            };
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"1\"");
            let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{LIST}", LIST.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    url
}

#[rstest]
#[case::with_a_role(Some("app"), StatusCode::OK, "ami-id\nhostname\niam/\ninstance-id")]
#[case::whose_role_is_refused(Some("a b"), StatusCode::OK, "ami-id\nhostname\niam/\ninstance-id")]
#[case::without_a_role(Some(""), StatusCode::OK, "ami-id\nhostname\ninstance-id")]
#[case::that_is_not_known_yet(None, StatusCode::SERVICE_UNAVAILABLE, "not known")]
#[tokio::test]
async fn a_listing_shows_iam_if_the_pod_has_a_role(
    #[case] role: Option<&str>,
    #[case] status: StatusCode,
    #[case] want: &str,
) {
    let (pods, rules, _) = decisions("one");
    pods.send_replace(role.map(inventory).unwrap_or_default());
    let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let sessions = Sessions::new(ByName);
    let handler = handler_with(
        sessions,
        &node().await,
        pods.subscribe(),
        rules.subscribe(),
        imds_v1,
    );
    let answer = handler.dry_run(&client(UID), "/latest/meta-data/").await;
    let answer = response::of(answer.outcome, answer.token_left);
    assert_eq!(answer.status(), status);
    assert!(!answer.headers().contains_key("etag"), "that is another list's");
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let body = String::from_utf8(body.to_vec()).unwrap();
    if status == StatusCode::OK {
        assert_eq!(body, want);
    } else {
        assert!(body.contains(want), "{body}");
    }
}

/// An issuer of sessions whose access key is the role's name.
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

/// Makes a handler that obtains sessions at once. The node has no metadata service.
pub(in crate::imds) fn handler(
    pods: Pods,
    rules: watch::Receiver<Arc<Rules>>,
    imds_v1: watch::Receiver<ImdsV1Policy>,
) -> Handler<ByName> {
    handler_with(Sessions::new(ByName), NO_SERVICE, pods, rules, imds_v1)
}

/// The URL of an address where no metadata service listens.
const NO_SERVICE: &str = "http://127.0.0.1:1";

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

/// Makes a request as connections do: it waits only if it must.
async fn asked(handler: &Handler<ByName>, client: &Client, role: &str) -> (StatusCode, String) {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let answer = match handler.try_answer(client, &request(role)) {
        Ok(answer) => answer,
        Err(pending) => handler.finish(client, pending, deadline).await,
    };
    let answer = response::of(answer.outcome, answer.token_left);
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_turn_while_the_role_changes_is_answered_for_the_new_role() {
    let (pods, rules, _) = decisions("one");
    let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let sessions = Sessions::new(ByName);
    let handler = handler_with(
        sessions.clone(),
        NO_SERVICE,
        pods.subscribe(),
        rules.subscribe(),
        imds_v1,
    );
    let client = client(UID);
    for number in 0..MAX_SESSIONS_AT_ONCE {
        let role = format!("role-{number}");
        pods.send_replace(inventory(&role));
        assert_eq!(asked(&handler, &client, &role).await.0, StatusCode::OK);
    }
    pods.send_replace(inventory("next"));
    let change = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        pods.send_replace(inventory("last"));
        sessions.retain(&HashSet::new());
    };
    let ((status, _), ()) = tokio::join!(asked(&handler, &client, "next"), change);
    assert_eq!(status, StatusCode::NOT_FOUND, "that is not its role any more");
    let (status, document) = asked(&handler, &client, "last").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(
        document.contains("new sessions of pod apps/web are paced"),
        "{document}"
    );
    // The cache may lag behind the pods, and forget a session that belongs to a pod again. The request then goes
    // on waiting for it.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let forget = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        sessions.retain(&HashSet::new());
    };
    let ((status, _), ()) = tokio::join!(asked(&handler, &client, "last"), forget);
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test]
async fn an_open_connection_is_never_served_the_session_of_a_former_role() {
    let (pods, rules, _) = decisions("one");
    let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let handler = handler(pods.subscribe(), rules.subscribe(), imds_v1);
    let client = client(UID);
    for now in ["one", "other", "one"] {
        pods.send_replace(inventory(now));
        for _ in 0..3 {
            let (status, document) = asked(&handler, &client, now).await;
            assert_eq!(status, StatusCode::OK);
            assert!(
                document.contains(&format!("\"AccessKeyId\": \"{now}\"")),
                "{document}"
            );
        }
        let was = if now == "one" { "other" } else { "one" };
        assert_eq!(asked(&handler, &client, was).await.0, StatusCode::NOT_FOUND);
    }
    pods.send_replace(Arc::default());
    let at_once = handler.try_answer(&client, &request("one"));
    assert!(at_once.is_err(), "the pod is gone");
}

/// Each change must take effect with the next request, also on an open connection.
#[tokio::test]
async fn a_change_of_the_token_policy_takes_effect_with_the_next_request() {
    let (pods, rules, _) = decisions("one");
    let (publish, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let handler = handler(pods.subscribe(), rules.subscribe(), imds_v1);
    let client = client(UID);
    assert_eq!(asked(&handler, &client, "one").await.0, StatusCode::OK);
    publish.send_replace(ImdsV1Policy::Denied);
    assert_eq!(asked(&handler, &client, "one").await.0, StatusCode::UNAUTHORIZED);
}
