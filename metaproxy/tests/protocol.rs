//! The metadata protocol as a pod sees it, over real sockets.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use common::{Node, counts, dial, eventually, node, node_with_sts, outcomes, start_dial};
use rstest::rstest;
use xtask::lab::pod::{Pod, PodSpec};

const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// Sends what stands in its standard input, byte for byte, and prints what comes back until the connection ends or
/// nothing has come for a second.
const RAW: &str = r#"
import socket, sys
connection = socket.create_connection(("169.254.169.254", 80), timeout=2)
connection.sendall(sys.stdin.buffer.read())
connection.settimeout(1.5)
try:
    while data := connection.recv(65536):
        sys.stdout.buffer.write(data)
except (TimeoutError, ConnectionResetError):
    pass
"#;

struct Response {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

/// One request of a pod, as raw bytes.
fn raw(pod: &Pod, request: &str) -> String {
    let mut python = pod.command("python3").unwrap();
    let mut child = python
        .args(["-c", RAW])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

fn ask(pod: &Pod, method: &str, path: &str, headers: &str) -> Response {
    let answer = raw(
        pod,
        &format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nConnection: close\r\n{headers}\r\n"),
    );
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer to {method} {path}: {answer:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()));
    Response {
        status,
        headers: headers.collect(),
        body: body.to_owned(),
    }
}

fn served() -> Option<(Node, Pod, Pod, xtask::lab::agent::Agent)> {
    let node = node()?;
    let a = node.lab.pod(PodSpec::with_role("a", "team/role-a")).unwrap();
    let c = node.lab.pod(PodSpec::without_role("c")).unwrap();
    let agent = node.agent();
    Some((node, a, c, agent))
}

#[test]
fn the_list_is_the_bare_name_and_the_document_what_sdks_parse() {
    let Some((node, a, c, _agent)) = served() else {
        return;
    };
    for path in [LIST, LIST.trim_end_matches('/')] {
        let list = ask(&a, "GET", path, "");
        assert_eq!(
            (list.status, list.body.as_str()),
            (200, "role-a"),
            "no newline after it"
        );
        assert_eq!(list.headers["content-type"], "text/plain");
        assert_eq!(list.headers["server"], "EC2ws");
        assert_eq!(list.headers["accept-ranges"], "none");
        assert!(list.headers.contains_key("last-modified"));
    }
    let document = ask(&a, "GET", &format!("{LIST}role-a"), "");
    assert_eq!(
        (document.status, document.headers["content-type"].as_str()),
        (200, "text/plain")
    );
    let document: serde_json::Value = serde_json::from_str(&document.body).unwrap();
    assert_eq!(
        (document["Code"].as_str(), document["Type"].as_str()),
        (Some("Success"), Some("AWS-HMAC"))
    );
    assert_eq!(document["SecretAccessKey"], "secret-of-role-a");
    for time in ["LastUpdated", "Expiration"] {
        let time = document[time].as_str().unwrap();
        assert!(
            time.len() == 20 && time.ends_with('Z'),
            "YYYY-MM-DDTHH:MM:SSZ: {time}"
        );
    }
    let head = ask(&a, "HEAD", LIST, "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    let none = ask(&c, "GET", LIST, "");
    assert_eq!(
        (none.status, none.headers["content-type"].as_str()),
        (404, "text/html")
    );
    assert!(none.body.contains("pod apps/c has no role"), "{}", none.body);
    assert_eq!(
        node.sts.calls()[0].role,
        "arn:aws:iam::123456789012:role/team/role-a"
    );
    assert_eq!(node.sts.calls()[0].session, "apps.a");
}

#[test]
fn version_2_tokens_are_the_pods_own() {
    let Some((_node, a, c, _agent)) = served() else {
        return;
    };
    const TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";
    let put = |pod, headers: &str| ask(pod, "PUT", "/latest/api/token", headers);
    let token = put(&a, "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n");
    assert_eq!(
        (token.status, token.headers["content-type"].as_str()),
        (200, "text/plain")
    );
    assert_eq!(token.headers[TTL], "60", "one SDK fails without it");
    assert!(
        token.body.bytes().all(|byte| byte.is_ascii_graphic()),
        "exactly the token: {:?}",
        token.body
    );
    let with = |pod, token: &str| {
        ask(
            pod,
            "GET",
            LIST,
            &format!("X-aws-ec2-metadata-token: {token}\r\n"),
        )
    };
    let list = with(&a, &token.body);
    assert_eq!((list.status, list.body.as_str()), (200, "role-a"));
    assert!((1..=60).contains(&list.headers[TTL].parse::<u64>().unwrap()));
    assert_eq!(with(&c, &token.body).status, 401, "another pod's token");
    assert_eq!(with(&a, "forged").status, 401);
    assert_eq!(with(&a, "").status, 401);
    for ttl in [
        "",
        "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n",
        "X-aws-ec2-metadata-token-ttl-seconds: 21601\r\n",
        "X-aws-ec2-metadata-token-ttl-seconds: x\r\n",
    ] {
        assert_eq!(put(&a, ttl).status, 400, "{ttl:?}");
    }
    assert_eq!(
        put(
            &a,
            "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 1.2.3.4\r\n"
        )
        .status,
        403
    );
    assert_eq!(ask(&a, "GET", "/latest/api/token", "").status, 405);
    let one = put(&a, "X-aws-ec2-metadata-token-ttl-seconds: 1\r\n");
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(with(&a, &one.body).status, 401, "it has expired");
}

#[test]
fn tokens_outlive_the_agent() {
    let Some((node, a, _c, mut agent)) = served() else {
        return;
    };
    let token = ask(
        &a,
        "PUT",
        "/latest/api/token",
        "X-aws-ec2-metadata-token-ttl-seconds: 600\r\n",
    )
    .body;
    agent.stop().unwrap();
    let _agent = node.agent();
    assert_eq!(
        ask(&a, "GET", LIST, &format!("X-aws-ec2-metadata-token: {token}\r\n")).body,
        "role-a"
    );
}

#[rstest]
#[case("GET", "/latest/meta-data/iam/security-credentials/node", 404)]
#[case("GET", "/latest/meta-data/iam/security-credentials/role-a/", 404)]
#[case("GET", "/latest/meta-data/iam/info", 404)]
#[case("GET", "/latest/user-data", 404)]
#[case("GET", "/latest/meta-data/instance-id", 404)]
#[case("GET", "/latest/meta-data//iam/security-credentials/node", 404)]
#[case("GET", "/latest/meta-data/%69am/security-credentials/node", 404)]
#[case("GET", "/", 404)]
#[case("POST", "/latest/meta-data/iam/security-credentials/role-a", 405)]
#[case("DELETE", "/latest/api/token", 405)]
fn everything_else_is_refused_and_reaches_nobody(
    #[case] method: &str,
    #[case] path: &str,
    #[case] status: u16,
) {
    let Some((node, a, _c, _agent)) = served() else {
        return;
    };
    assert_eq!(ask(&a, method, path, "").status, status);
    assert_eq!(node.imds.seen_from_pods(), []);
    let asked_by_agent = node.imds.seen();
    assert!(
        asked_by_agent
            .iter()
            .all(|seen| !seen.request.contains("user-data")),
        "{asked_by_agent:?}"
    );
}

#[test]
fn a_body_is_dropped_and_the_next_request_on_the_connection_is_understood() {
    let Some((_node, a, _c, _agent)) = served() else {
        return;
    };
    let put = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
    let get = format!("GET {LIST} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    for body in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n0\r\n\r\n",
    ] {
        let answer = raw(&a, &format!("{put}{body}{get}"));
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
        assert!(answer.ends_with("\r\n\r\nrole-a"), "{answer}");
    }
    let old = raw(&a, &format!("GET {LIST} HTTP/1.0\r\n\r\n"));
    assert!(
        old.starts_with("HTTP/1.0 200") && old.ends_with("\r\n\r\nrole-a"),
        "{old}"
    );
}

#[test]
fn an_agent_that_knows_its_region_asks_the_nodes_service_for_nothing_before_a_pod_has_a_role() {
    let Some(node) = node() else { return };
    let spec = node.spec().with(&["--region", "us-east-1"]);
    let _agent = xtask::lab::agent::Agent::start(&node.lab, &spec).unwrap();
    assert_eq!(node.imds.seen(), []);
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    eventually("the session is fetched ahead", || node.sts.calls().len() == 1);
    assert!(
        node.imds
            .seen()
            .iter()
            .all(|seen| seen.request.contains("token") || seen.request.contains("iam/"))
    );
    drop(a);
}

#[test]
fn five_hundred_that_ask_at_once_for_a_session_that_is_not_there_cost_one_call() {
    let Some(node) = node_with_sts(Duration::from_millis(150)) else {
        return;
    };
    let a = node
        .lab
        .pod(PodSpec {
            known: false,
            ..PodSpec::with_role("a", "role-a")
        })
        .unwrap();
    let _agent = node.agent();
    let path = format!("{LIST}role-a");
    let asking = start_dial(&a, &["--path", &path, "--count", "500", "--threads", "500"]);
    std::thread::sleep(Duration::from_millis(100));
    // They are all held, as the pod is not known yet; now it is.
    a.write_manifest(&[("iam.amazonaws.com/role".to_owned(), "role-a".to_owned())])
        .unwrap();
    let got = outcomes(asking);
    assert_eq!(got.values().sum::<usize>(), 500);
    assert_eq!(got.len(), 1, "all got the same document: {got:?}");
    assert!(
        got.keys().all(|document| document.contains("ASIA0000role-a")),
        "{got:?}"
    );
    assert_eq!(node.sts.calls().len(), 1);
}

#[test]
fn every_answer_comes_within_a_second_however_slow_sts_is() {
    let Some(node) = node_with_sts(Duration::from_secs(3)) else {
        return;
    };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    let path = format!("{LIST}role-a");
    assert_eq!(
        dial(&a, &[]),
        counts([("role-a", 1)]),
        "the list needs no session"
    );
    let words = ["--path", &path, "--time"];
    let got = dial(&a, &words);
    let (outcome, _) = got.first_key_value().unwrap();
    let (status, took) = outcome.split_once(" after ").unwrap();
    let took: u64 = took.trim_end_matches(" ms").parse().unwrap();
    assert_eq!(status, "status 503");
    assert!(took < 1000, "an SDK gives up after a second: {took} ms");
    eventually("the call went on behind it", || {
        dial(&a, &["--path", &path])
            .keys()
            .any(|answer| answer.contains("ASIA"))
    });
    assert_eq!(node.sts.calls().len(), 1);
}

#[test]
fn a_role_that_the_namespace_does_not_permit_is_refused_with_the_reason_until_it_does() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let namespace = |annotations: &str| {
        node.lab
            .manifest(
                "namespace.yaml",
                &format!("kind: Namespace\nmetadata: {{name: apps, annotations: {{{annotations}}}}}\n"),
            )
            .unwrap();
    };
    let spec = xtask::lab::agent::AgentSpec {
        flags: ["--sts-endpoint", &xtask::lab::sts::FakeSts::url()]
            .map(str::to_owned)
            .to_vec(),
        ..node.spec()
    };
    let _agent = xtask::lab::agent::Agent::start(&node.lab, &spec).unwrap();
    assert_eq!(
        dial(&a, &[]),
        counts([("status 503", 1)]),
        "the namespace is not known yet"
    );
    namespace("");
    eventually("it is refused", || dial(&a, &[]) == counts([("role-a", 1)]));
    let document = ask(&a, "GET", &format!("{LIST}role-a"), "");
    assert_eq!(document.status, 200);
    assert!(
        document.body.contains("AssumeRoleUnauthorizedAccess")
            && document.body.contains("--namespace-policy"),
        "{}",
        document.body
    );
    assert_eq!(node.sts.calls(), []);
    namespace("iam.amazonaws.com/permitted: 'role-.*'");
    eventually("it is permitted", || {
        ask(&a, "GET", &format!("{LIST}role-a"), "").body.contains("ASIA")
    });
    namespace("iam.amazonaws.com/allowed-roles: '[\"other\"]'");
    eventually("it is refused again", || {
        ask(&a, "GET", &format!("{LIST}role-a"), "")
            .body
            .contains("does not allow it")
    });
}
