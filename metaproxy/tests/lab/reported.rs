//! Requests that existing software sends to the metadata service, according to public reports and sources. Each test
//! names its source.

use std::process::{Command, Stdio};

use crate::common::http::{LIST, Response, exchange, raw, timed_exchange};
use crate::common::{Node, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;

const ID: &str = "/latest/meta-data/instance-id";

fn served(flags: &[&str]) -> Option<(Node, Pod, Agent)> {
    let node = node()?;
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = Agent::start(&node.lab, &node.spec().with(flags)).unwrap();
    Some((node, a, agent))
}

/// Returns the text of a request with these headers and `Connection: close` only.
fn sent(target: &str, headers: &str) -> [String; 1] {
    [format!(
        "GET {target} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n"
    )]
}

/// Some libraries detect the cloud in which they run. zalando/spilo (configure_spilo.py, `get_provider`) requests the
/// root, then OpenStack's path, then `ami-id`. Google's libraries (googleapis/google-auth-library-nodejs#1944),
/// Azure's and Oracle's request their own clouds' paths. Software that assumes ECS requests ECS's paths
/// (uswitch/kiam#469).
#[test]
fn software_that_detects_its_cloud_finds_ec2_at_once() {
    const HOST: &str = "Host: 169.254.169.254\r\n";
    const GOOGLE: &str = "Host: metadata.google.internal\r\nMetadata-Flavor: Google\r\n";
    let Some((node, a, _agent)) = served(&["--imds-v1", "allow"]) else {
        return;
    };
    let asked = [
        ("/", HOST, 200),
        ("/latest/meta-data/ami-id", HOST, 200),
        ("/", GOOGLE, 200),
        ("/openstack/latest/meta_data.json", HOST, 404),
        ("/openstack", HOST, 404),
        ("/computeMetadata/v1/instance/zone", GOOGLE, 404),
        ("/computeMetadata/v1/instance?recursive=true", GOOGLE, 404),
        (
            "/metadata/instance?api-version=2021-02-01",
            "Host: 169.254.169.254\r\nMetadata: true\r\n",
            404,
        ),
        (
            "/opc/v2/instance/",
            "Host: 169.254.169.254\r\nAuthorization: Bearer Oracle\r\n",
            404,
        ),
        ("/v2/metadata", HOST, 404),
        ("/v2/credentials/0", HOST, 404),
        ("/v3/task", HOST, 404),
    ];
    let before = node.imds.seen().len();
    let requests = asked.map(|(target, headers, _)| sent(target, headers));
    let answers = timed_exchange(&a, &requests, 2.0);
    assert_eq!(answers.len(), asked.len());
    for ((target, _, status), (answer, took)) in asked.iter().zip(answers) {
        let answer = Response::parse(&answer).unwrap_or_else(|| panic!("{target}: {answer:?}"));
        assert_eq!(answer.status, *status, "{target}: {answer:?}");
        assert_eq!(answer.header("metadata-flavor"), None, "{target} is not Google's");
        assert!(took <= 0.9, "{target}: {took} s");
    }
    // No request for another cloud's path is passed on.
    let seen = node.imds.seen().split_off(before);
    let passed: Vec<&str> = seen.iter().map(|seen| seen.request.as_str()).collect();
    for other in ["openstack", "computeMetadata", "/metadata/", "opc", "/v2", "/v3"] {
        assert!(passed.iter().all(|path| !path.contains(other)), "{passed:?}");
    }
    assert!(passed.contains(&"GET /latest/meta-data/ami-id"), "{passed:?}");
}

/// iriusrisk/GoCD-EC2-Elastic-Agent-Plugin#23 requests the root, and concludes IMDSv1 from status 200.
#[rstest]
#[case::version_1("allow", 200)]
#[case::version_2("deny", 401)]
fn a_request_for_the_root_tells_whether_session_tokens_are_required(
    #[case] imds_v1: &str,
    #[case] status: u16,
) {
    let Some((_node, a, _agent)) = served(&["--imds-v1", imds_v1]) else {
        return;
    };
    let answer = exchange(&a, &[sent("/", "Host: 169.254.169.254\r\n")], 2.0).remove(0);
    assert_eq!(Response::parse(&answer).unwrap().status, status, "{answer}");
}

/// andersfugmann/aws-s3 sends EC2's name of the service as host. Other clients send no name, or a proxy's.
#[rstest]
#[case("instance-data.ec2.internal")]
#[case("instance-data")]
#[case("169.254.169.254:80")]
#[case("[fd00:ec2::254]")]
#[case("")]
fn a_client_may_send_any_host_header(#[case] host: &str) {
    let Some((_node, a, _agent)) = served(&["--imds-v1", "allow"]) else {
        return;
    };
    for (target, body) in [
        (LIST, "role-a"),
        (ID, "of the node: /latest/meta-data/instance-id"),
    ] {
        let answer = exchange(&a, &[sent(target, &format!("Host: {host}\r\n"))], 2.0).remove(0);
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with(body),
            "{host:?}: {answer}"
        );
    }
}

/// jtblin/kube2iam#222 describes a client that opens a connection for each request and closes none. EC2's service
/// closes each connection itself.
#[test]
fn a_client_that_never_closes_its_connections_is_still_served() {
    let flags = ["--max-connections-per-pod", "16", "--idle-timeout", "1s"];
    let Some((_node, a, _agent)) = served(&flags) else {
        return;
    };
    let leaky = r#"
import socket, time
request = b"GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n"
connections, served = [], 0
for _ in range(40):
    connection = socket.create_connection(("169.254.169.254", 80), timeout=5)
    connections.append(connection)
    try:
        connection.sendall(request)
        served += connection.recv(4096).endswith(b"role-a")
    except ConnectionError:
        pass
    time.sleep(0.12)
print(served)
"#;
    let served = output(a.command("python3").unwrap().args(["-c", leaky]));
    assert_eq!(served, "40");
}

/// Runs a program, and returns its standard output.
fn output(command: &mut Command) -> String {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Init containers and entry points use wget (rancher/os#2216), with the API version that kube-aws requests
/// (kubernetes-retired/kube-aws#1105). libcurl can upload an empty body (s3fs-fuse/s3fs-fuse#1765). It then sends
/// `Expect: 100-continue` and chunks, which EC2's service answers with 417.
#[test]
fn requests_by_wget_and_curl_are_answered() {
    const SERVICE: &str = "http://169.254.169.254";
    let Some((_node, a, _agent)) = served(&["--imds-v1", "allow"]) else {
        return;
    };
    let wget = |path: &str| {
        let mut command = a.command("wget").unwrap();
        output(command.args(["-q", "-O", "-", &format!("{SERVICE}{path}")]))
    };
    assert_eq!(
        wget("/2016-09-02/meta-data/instance-id"),
        "of the node: /2016-09-02/meta-data/instance-id"
    );
    assert_eq!(wget(LIST), "role-a");
    let curl = |words: &[&str]| {
        let mut command = a.command("curl").unwrap();
        output(command.args(["-s", "-S", "-f"]).args(words))
    };
    let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 21600";
    let put = format!("{SERVICE}/latest/api/token");
    let uploaded = curl(&["-T", "-", "-H", "Expect: 100-continue", "-H", ttl, &put]);
    let asked = curl(&["-X", "PUT", "-H", ttl, &put]);
    for token in [uploaded, asked] {
        assert_eq!(token.len(), 56, "{token}");
        let header = format!("X-aws-ec2-metadata-token: {token}");
        assert_eq!(curl(&["-H", &header, &format!("{SERVICE}{LIST}")]), "role-a");
    }
}

/// Clients that know their role's ARN request it without requesting the list before (jtblin/kube2iam#136 and
/// rusoto/rusoto#1840).
#[test]
fn a_client_that_requests_its_roles_arn_first_gets_credentials() {
    let Some(node) = node() else { return };
    let arn = "arn:aws:iam::123456789012:role/team/role-a";
    let a = node.lab.pod(PodSpec::with_role("a", arn)).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let _agent = node.agent();
    let target = format!("{LIST}{arn}");
    let answer = raw(&a, &sent(&target, "Host: 169.254.169.254\r\n")[0]);
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("secret-of-role-a"),
        "{answer}"
    );
    let other = raw(&b, &sent(&target, "Host: 169.254.169.254\r\n")[0]);
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}
