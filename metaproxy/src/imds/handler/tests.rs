use super::*;
use crate::imds::decisions::tests::{client, decisions, inventory};
use crate::imds::recent::tests::{ByName, handler_with};
use crate::imds::response;
use http_body_util::BodyExt as _;
use hyper::StatusCode;
use rstest::rstest;
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
async fn a_pod_is_shown_iam_if_it_is_answered_there(
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
