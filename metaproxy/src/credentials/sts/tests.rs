use std::io::{Read as _, Write as _};

use super::*;
use rstest::rstest;

/// Returns the error of a call to a server that answers each request like this, with another request ID each time.
async fn error_of_answer(status: &str, content_type: &str, body: &'static str) -> ObtainError {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n{content_type}");
    std::thread::spawn(move || {
        for (number, mut stream) in listener.incoming().map_while(Result::ok).enumerate() {
            let _ = stream.read(&mut [0; 8192]);
            let id = format!("x-amzn-requestid: {number}-{:?}", std::time::Instant::now());
            let _ = write!(
                stream,
                "{head}{id}\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    let http = NetworkEnv::default().http_client().unwrap();
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .retry_config(aws_sdk_sts::config::retry::RetryConfig::disabled())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .credentials_provider(aws_sdk_sts::config::Credentials::new(
            "a", "b", None, None, "test",
        ))
        .build();
    let client = Client::from_conf(config);
    let sts = Sts {
        node: client.clone(),
        anonymous: client.clone(),
        anonymous_global: client.clone(),
        client,
        duration: Duration::from_secs(3600),
        region: String::new(),
        endpoint: None,
    };
    let key = SessionKey {
        role: "arn:aws:iam::123456789012:role/app".parse().unwrap(),
        shape: crate::roles::SessionShape {
            name: SessionName::of_pod("a", "b"),
            external_id: None,
            tags: SessionTags::default(),
            pod: None,
            principal: crate::roles::Principal::Node,
        },
    };
    sts.assume(&key).await.unwrap_err()
}

const XML: &str = "Content-Type: text/xml\r\n";
const HTML: &str = "Content-Type: text/html; charset=utf-8\r\n";
const NOT_STS: &str =
    "a proxy or firewall on the way may have sent it (look at HTTPS_PROXY, NO_PROXY and --sts-endpoint)";

/// A response that cannot be parsed may hold credentials.
#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_shown() {
    let body = "<AssumeRoleResponse><SecretAccessKey>TOPSECRET</SecretAccessKey>";
    let error = error_of_answer("200 OK", XML, body).await;
    let want = "STS answered what cannot be read, with HTTP status 200";
    assert_eq!(error, ObtainError::Unavailable(want.to_owned()));
    assert!(!format!("{error} {error:?}").contains("TOPSECRET"), "{error}");
}

/// The text is the same for each attempt, although the server's request ID is not.
#[rstest]
#[case::html_of_a_proxy(
    "403 Forbidden",
    HTML,
    "<html>TOPSECRET</html>",
    "HTTP status 403, content type text/html"
)]
#[case::html_of_a_gateway("502 Bad Gateway", HTML, "<html>", "HTTP status 502, content type text/html")]
#[case::login_page("200 OK", HTML, "<html>", "HTTP status 200, content type text/html")]
#[case::json(
    "403 Forbidden",
    "Content-Type: application/json\r\n",
    "{}",
    "HTTP status 403, content type application/json"
)]
#[case::nothing("503 Service Unavailable", "", "", "HTTP status 503, no content type")]
#[case::odd_type("407 x", "Content-Type: <b>\"x\"\r\n", "", "HTTP status 407, content type bx")]
#[tokio::test]
async fn an_answer_that_is_not_from_sts_is_described_by_its_status(
    #[case] status: &str,
    #[case] content_type: &str,
    #[case] body: &'static str,
    #[case] want: &str,
) {
    let want = format!("the answer is not from STS: {want}; {NOT_STS}");
    for _ in 0..2 {
        let error = error_of_answer(status, content_type, body).await;
        assert_eq!(error, ObtainError::Unavailable(want.clone()));
    }
}

#[rstest]
#[case::busy(
    "503 Service Unavailable",
    "<ErrorResponse><Error><Code>ServiceUnavailable</Code><Message>later</Message></Error><RequestId>r1</RequestId></ErrorResponse>",
    "STS answered ServiceUnavailable (HTTP status 503): later"
)]
#[case::expired(
    "403 Forbidden",
    "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>it is over</Message></Error><RequestId>r1</RequestId></ErrorResponse>",
    "STS answered ExpiredToken (HTTP status 403): it is over"
)]
#[case::empty(
    "500 Internal Server Error",
    "",
    "STS answered what cannot be read, with HTTP status 500"
)]
#[tokio::test]
async fn an_answer_of_sts_is_described_without_ids(
    #[case] status: &str,
    #[case] body: &'static str,
    #[case] want: &str,
) {
    let error = error_of_answer(status, XML, body).await;
    assert_eq!(error, ObtainError::Unavailable(want.to_owned()));
}
