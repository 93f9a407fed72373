//! Sends requests of a pod byte for byte.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;

use metaproxy_lab::pod::Pod;

pub const LIST: &str = "/latest/meta-data/iam/security-credentials/";
pub const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// An HTTP response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// The headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Response {
    /// Parses the first answer on a connection. Returns `None` if there is none.
    pub fn parse(answer: &str) -> Option<Self> {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Some(Self {
            status,
            headers: headers.collect(),
            body: body.to_owned(),
        })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.body))
    }
}

/// Sends each request on a connection of its own, in one or several pieces, and returns the answers as text.
pub fn exchange<R: AsRef<[P]>, P: AsRef<str>>(pod: &Pod, requests: &[R], patience: f64) -> Vec<String> {
    let answers = timed_exchange(pod, requests, patience);
    answers.into_iter().map(|(answer, _)| answer).collect()
}

/// Sends each request as `exchange` does. Returns each answer with the seconds until its first byte.
pub fn timed_exchange<R: AsRef<[P]>, P: AsRef<str>>(
    pod: &Pod,
    requests: &[R],
    patience: f64,
) -> Vec<(String, f64)> {
    let requests: Vec<Vec<&str>> = requests
        .iter()
        .map(|pieces| pieces.as_ref().iter().map(AsRef::as_ref).collect())
        .collect();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/raw.py");
    let mut child = pod
        .command("python3")
        .unwrap()
        .arg(script)
        .arg(patience.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&serde_json::to_vec(&requests).unwrap()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "raw.py failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Sends one request as raw bytes.
pub fn raw(pod: &Pod, request: &str) -> String {
    exchange(pod, &[[request]], 1.5).remove(0)
}

/// Makes the text of a request.
pub fn request(method: &str, target: &str, headers: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n{headers}\r\n")
}

pub fn ask(pod: &Pod, method: &str, path: &str, headers: &str) -> Response {
    let answer = raw(pod, &request(method, path, headers));
    Response::parse(&answer).unwrap_or_else(|| panic!("no answer to {method} {path}: {answer:?}"))
}

pub fn get(pod: &Pod, path: &str) -> Response {
    ask(pod, "GET", path, "")
}

/// Requests a session token that is valid for this number of seconds.
pub fn token(pod: &Pod, seconds: u64) -> String {
    let answer = ask(pod, "PUT", "/latest/api/token", &format!("{TTL}: {seconds}\r\n"));
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Makes the header of a request with a session token.
pub fn with_token(token: &str) -> String {
    format!("X-aws-ec2-metadata-token: {token}\r\n")
}
