use super::*;

/// Whatever STS answers, and however little of it can be understood, it is not repeated.
#[tokio::test]
async fn an_answer_that_cannot_be_read_is_not_shown() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 8192]);
            let body = "<AssumeRoleResponse><SecretAccessKey>TOPSECRET</SecretAccessKey>";
            let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/xml";
            let _ = write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        }
    });
    let http = NetworkEnv::default().http_client().unwrap();
    let config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(http)
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .credentials_provider(aws_sdk_sts::config::Credentials::new(
            "a", "b", None, None, "test",
        ))
        .build();
    let client = Client::from_conf(config);
    let sts = Sts {
        node: client.clone(),
        anyone: client.clone(),
        anyone_global: client.clone(),
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
            tags: Vec::new(),
            pod: None,
            principal: crate::roles::Principal::Node,
        },
    };
    let error = sts.assume(&key).await.unwrap_err();
    assert!(matches!(error, ObtainError::Unavailable(_)));
    assert!(!format!("{error} {error:?}").contains("TOPSECRET"), "{error}");
}
