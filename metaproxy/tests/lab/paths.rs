//! Many spellings of paths, sent over real sockets. The tests check which requests reach the node's metadata service.

use std::time::Instant;

use crate::common::http::{Response, exchange, raw, request};
use crate::common::{Node, node};
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::pod::{Pod, PodSpec};

/// All paths of the node that a pod must never read, relative to the version.
const SECRETS: [&str; 12] = [
    "meta-data/iam/security-credentials/node",
    "meta-data/iam/security-credentials/",
    "meta-data/iam/security-credentials-extended/node",
    "meta-data/iam/info",
    "meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "meta-data/identity-credentials/ec2/info",
    "meta-data/public-keys/0/openssh-key",
    "meta-data/managed-ssh-keys/signer-cert",
    "user-data",
    "dynamic/instance-identity/pkcs7",
    "dynamic/instance-identity/rsa2048",
    "dynamic/instance-identity/signature",
];

fn percent(text: &str, which: impl Fn(usize, char) -> bool) -> String {
    text.chars()
        .enumerate()
        .map(|(index, c)| {
            if which(index, c) {
                format!("%{:02x}", u32::from(c))
            } else {
                c.to_string()
            }
        })
        .collect()
}

/// Returns spellings of a path (relative to the version) that a server or proxy might treat as that path.
fn spellings(path: &str) -> Vec<String> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let plain = format!("/latest/{path}");
    let letters = |depth: usize| {
        let once = percent(path, |_, c| c.is_ascii_alphabetic());
        format!(
            "/latest/{}",
            (1..depth).fold(once, |text, _| text.replace('%', "%25"))
        )
    };
    let mut all = vec![
        plain.clone(),
        format!("/1.0/{path}"),
        format!("/2021-07-15/{path}"),
        format!("/latest//{path}"),
        format!("//latest/{path}"),
        format!("//169.254.169.254/latest/{path}"),
        plain.replace('/', "//"),
        format!("/./latest/./{path}"),
        format!("/latest/x/../{path}"),
        format!("/latest/meta-data/placement/../../{path}"),
        format!("/latest/meta-data/instance-id/../../{path}"),
        format!("/latest/meta-data/placement/%2e%2e/%2e%2e/{path}"),
        format!("/latest/meta-data/placement/..%2f..%2f{path}"),
        format!("/latest/meta-data/placement/..;/..;/{path}"),
        format!("/latest/meta-data/placement\\..\\..\\{path}"),
        format!("/latest/meta-data/placement/%5c..%5c..%5c{path}"),
        format!("/latest/meta-data/instance-id?/../../{path}"),
        format!("/latest/meta-data/instance-id%3f/../../../{path}"),
        format!("/latest/meta-data/instance-id#/../../{path}"),
        format!("/latest/meta-data/instance-id%00/../../{path}"),
        format!("/latest/meta-data/instance-id%0d%0a%0d%0aGET%20/latest/{path}"),
        format!("/../../latest/{path}"),
        // These lead out of the instance's tags, whose keys may be any text.
        format!("/latest/meta-data/tags/instance/../../../{path}"),
        format!("/latest/meta-data/tags/instance/%2e%2e/%2e%2e/%2e%2e/{path}"),
        format!("/latest/meta-data/tags/instance/x%20y/../../../../{path}"),
        format!("/latest/meta-data/tags/instance/..;/..;/..;/{path}"),
        format!("/latest/meta-data/tags/instance/..%5c..%5c..%5c{path}"),
        format!("/latest/meta-data/tags/instance/..%20/..%20/..%20/{path}"),
        format!("/latest/meta-data/tags/instance/..%ef%bc%8f..%ef%bc%8f..%ef%bc%8f{path}"),
        format!("/latest/meta-data/tags/instance/%25252e%25252e%25252f..%2f..%2f{path}"),
        format!("/latest/meta-data/tags/instance/x%0d%0a%0d%0aGET%20/latest/{path}"),
        format!("/latest/meta-data/tags/instance%3f/../../../{path}"),
        letters(1),
        letters(2),
        letters(3),
        letters(6),
        format!("/latest/{}", percent(path, |_, c| c == '/')),
        format!("/latest/{}", percent(path, |index, _| index % 2 == 0)),
        format!("/latest/{}", percent(path, |_, c| c == '/').replace('%', "%25")),
        percent(&plain, |index, _| index > 0),
        format!("/latest/{}", path.to_uppercase()),
        format!("/LATEST/{path}"),
        format!("/latest/{}", path.replace('i', "I")),
        format!("/latest/{}", path.replace('/', "\\")),
        format!("/latest\\{path}"),
        format!("{plain}/"),
        format!("{plain}/."),
        format!("{plain}//"),
        format!("{plain}?"),
        format!("{plain}?x=/latest/meta-data/instance-id"),
        format!("{plain};x=y"),
        format!("{plain}%20"),
        format!("{plain}%09"),
        format!("{plain}%00"),
        format!("{plain}."),
        format!("{plain}/../{}", plain.rsplit('/').next().unwrap_or_default()),
        format!("/latest;x/{path}"),
        format!("/latest/{first};x/{rest}"),
        format!("/latest/{}", path.replace('/', "%c0%af")),
        format!("/latest/{}", path.replace('/', "\u{c0}\u{af}")),
        format!("/latest/{}", path.replace('-', "%e2%80%90")),
        format!("/latest/{}", path.replacen('a', "\u{e1}", 1)),
        format!("http://169.254.169.254/latest/{path}"),
        format!("http://169.254.169.254:80//latest/{path}"),
        format!("http://x@169.254.169.254/latest/{path}"),
        format!("latest/{path}"),
        format!("/{path}"),
    ];
    all.dedup();
    all
}

const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE"];

/// Headers that have tricked proxies into serving another path or method.
const TRICKS: [&str; 6] = [
    "",
    "X-Original-URL: /latest/user-data\r\nX-Rewrite-URL: /latest/user-data\r\n",
    "X-HTTP-Method-Override: GET\r\nX-Method-Override: GET\r\n",
    "Host: 169.254.169.254\r\nX-Forwarded-Host: 169.254.169.254\r\nForwarded: for=169.254.169.254\r\n",
    "Connection: close, X-aws-ec2-metadata-token\r\nTE: trailers\r\nUpgrade: h2c\r\n",
    "X-Evil: y\r\nCookie: a=b\r\nAuthorization: Basic eA==\r\nRange: bytes=0-0\r\n",
];

/// Starts an agent whose own credentials come from the environment. All requests that the recorder sees, except
/// `OWN_REQUESTS`, are then passed on for a pod.
fn agent(node: &Node) -> Agent {
    let environment = [
        ("AWS_ACCESS_KEY_ID", "AKIA"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_REGION", "us-east-1"),
    ];
    let environment: Vec<_> = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let spec = AgentSpec {
        environment,
        ..node.spec()
    };
    // The flag allows all paths. Secrets must not be passed on even then.
    Agent::start(
        &node.lab,
        &spec.with(&["--imds-v1", "allow", "--allow-path", ".*"]),
    )
    .unwrap()
}

/// The requests that the agent makes for itself at its start and once a minute, to learn the node's own role.
const OWN_REQUESTS: [&str; 2] = [
    "GET /latest/meta-data/iam/info",
    "GET /latest/meta-data/iam/security-credentials/",
];

/// Asserts that the recorder saw only metadata in plain spelling, without any header of a pod, and the agent's own
/// requests, at most as often as the agent makes them since its start. Returns the requests that were passed on.
fn check_recorder(node: &Node, start: Instant) -> Vec<String> {
    let mut seen = node.imds.seen();
    for own in OWN_REQUESTS {
        let all = seen.len();
        seen.retain(|seen| seen.request != own);
        let most = 1 + start.elapsed().as_secs() as usize / 60;
        assert!(all - seen.len() <= most, "{own}: {} times", all - seen.len());
    }
    assert_eq!(node.imds.seen_from_pods(), []);
    for seen in &seen {
        let (method, path) = seen.request.split_once(' ').unwrap();
        let names: Vec<&str> = seen.headers.keys().map(|name| name.as_str()).collect();
        for name in &names {
            let known = [
                "host",
                "user-agent",
                "x-aws-ec2-metadata-token",
                "x-aws-ec2-metadata-token-ttl-seconds",
                "content-length",
            ];
            assert!(
                known.contains(name),
                "{name} reached the node's service with {}",
                seen.request
            );
        }
        if seen.request == "PUT /latest/api/token" {
            continue;
        }
        assert!(method == "GET" || method == "HEAD", "{}", seen.request);
        let tag = path
            .splitn(3, '/')
            .nth(2)
            .and_then(|path| path.strip_prefix("meta-data/tags/instance/"));
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:=@,+".contains(&byte);
        assert!(
            path.bytes()
                .all(|byte| is_known(byte) || tag.is_some() && byte == b'%'),
            "{path}"
        );
        assert!(
            !path.contains("%5") && !path.contains("%0") && !path.contains("%25"),
            "{path}"
        );
        for part in path.split('/') {
            let part = part.to_lowercase();
            assert!(part != "." && part != ".." && !part.contains("..;"), "{path}");
            // The path below the tags is text of the instance's owner.
            if tag.is_some() {
                continue;
            }
            let is_secret = part.contains("credential");
            let secret = [
                "iam",
                "user-data",
                "public-keys",
                "managed-ssh-keys",
                "pkcs7",
                "rsa2048",
                "signature",
            ];
            assert!(
                !is_secret && !secret.contains(&part.as_str()),
                "{} reached the node's service",
                seen.request
            );
        }
    }
    seen.into_iter().map(|seen| seen.request).collect()
}

/// Asserts that an answer to a pod contains no credentials of the node, and no secret path's content.
fn check_answer(sent: &str, answer: &str) {
    for secret in ["node-secret", "AKIANODE", "node-token"] {
        assert!(!answer.contains(secret), "{sent:?} got {answer:?}");
    }
    if let Some((_, path)) = answer.split_once("of the node: ") {
        let path = path.lines().next().unwrap_or_default().to_lowercase();
        for secret in SECRETS {
            assert!(
                !path.contains(secret.trim_end_matches('/')),
                "{sent:?} got {answer:?}"
            );
        }
    }
}

fn pods(node: &Node) -> [Pod; 2] {
    let with = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let without = node.lab.pod(PodSpec::without_role("none")).unwrap();
    [with, without]
}

#[test]
fn no_spelling_of_a_secret_path_reaches_the_nodes_service() {
    let Some(node) = node() else { return };
    let pods = pods(&node);
    let start = Instant::now();
    let _agent = agent(&node);
    let variants: Vec<String> = SECRETS.iter().flat_map(|secret| spellings(secret)).collect();
    assert!(variants.len() >= 170 * 4, "{}", variants.len());
    let mut requests = Vec::new();
    for target in &variants {
        for method in METHODS {
            requests.extend(TRICKS.map(|trick| [request(method, target, trick)]));
        }
    }
    let statuses = std::thread::scope(|scope| {
        let asking: Vec<_> = pods
            .iter()
            .map(|pod| {
                let requests = &requests;
                scope.spawn(move || {
                    let mut statuses = std::collections::BTreeMap::new();
                    for ([sent], answer) in requests.iter().zip(exchange(pod, requests, 3.0)) {
                        check_answer(sent, &answer);
                        let status = Response::parse(&answer).map(|answer| answer.status);
                        *statuses.entry(status).or_insert(0) += 1;
                    }
                    statuses
                })
            })
            .collect();
        asking
            .into_iter()
            .map(|asking| asking.join().unwrap())
            .collect::<Vec<_>>()
    });
    println!("{} requests of each pod: {statuses:?}", requests.len());
    for statuses in &statuses {
        assert!(!statuses.contains_key(&None), "each is answered: {statuses:?}");
        assert!(statuses[&Some(404)] > requests.len() / 4, "{statuses:?}");
    }
    let reached = check_recorder(&node, start);
    println!("{} requests reached the node's service", reached.len());
}

#[test]
fn the_agents_own_paths_are_answered_in_any_spelling_and_not_passed_on() {
    let Some(node) = node() else { return };
    let [a, _] = pods(&node);
    let start = Instant::now();
    let _agent = agent(&node);
    let own = [
        ("meta-data/iam/security-credentials/", "role-a"),
        ("meta-data/iam/security-credentials/role-a", "\"Success\""),
        (
            "meta-data/iam/security-credentials-extended/role-a",
            "\"AccountId\"",
        ),
        ("meta-data/iam/info", "instance-profile/role-a"),
        ("meta-data/iam/", "security-credentials/"),
    ];
    let mut requests = Vec::new();
    let mut wanted = Vec::new();
    for (path, want) in own {
        let bare = path.trim_end_matches('/');
        let plain = format!("/latest/{path}");
        for target in [
            format!("/latest/{bare}"),
            format!("/latest/{bare}/"),
            format!("/latest/{bare}//"),
            plain.replace('/', "//"),
            format!("/latest/./x/../{path}"),
            format!("/latest/{}", percent(path, |_, c| c == '-')),
            format!("/latest/{}", percent(path, |_, c| c.is_ascii_alphabetic())),
            format!("/latest/{}", percent(path, |_, c| c == '/')),
            format!("{plain}?x=y"),
        ] {
            requests.push([request("GET", &target, "")]);
            wanted.push(want);
        }
    }
    let answers = exchange(&a, &requests, 2.0);
    assert_eq!(answers.len(), own.len() * 9);
    for (([sent], want), answer) in requests.iter().zip(&wanted).zip(answers) {
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(want),
            "{sent:?} got {answer:?}"
        );
    }
    for target in ["/latest/api/token/", "/latest//api/token", "/latest/%61pi/token"] {
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\n";
        let answer = exchange(&a, &[[request("PUT", target, ttl)]], 2.0).remove(0);
        assert!(answer.starts_with("HTTP/1.1 200"), "{target} got {answer:?}");
    }
    let passed = check_recorder(&node, start);
    assert_eq!(
        passed.iter().filter(|seen| seen.starts_with("GET")).count(),
        0,
        "{passed:?}"
    );
}

#[test]
fn other_spellings_of_permitted_paths_are_passed_on_in_plain_form() {
    let Some(node) = node() else { return };
    let [a, _] = pods(&node);
    let start = Instant::now();
    let _agent = agent(&node);
    let plain = "/latest/meta-data/placement/region";
    let targets = [
        "/latest//meta-data/placement/region",
        "/latest/./meta-data/x/../placement/region",
        "/latest/meta-data/pl%61cement/r%2565gion",
        "/latest/meta-data/placement/region?x=y",
        "//latest/meta-data/placement%2fregion",
    ];
    let requests = targets.map(|target| [request("GET", target, "X-Evil: y\r\n")]);
    for ([sent], answer) in requests.iter().zip(exchange(&a, &requests, 2.0)) {
        assert!(answer.ends_with("us-east-1"), "{sent:?} got {answer:?}");
    }
    let passed: Vec<String> = check_recorder(&node, start)
        .into_iter()
        .filter(|seen| seen.starts_with("GET"))
        .collect();
    assert_eq!(passed, vec![format!("GET {plain}"); targets.len()]);
}

/// Two HTTP parsers might read different requests from these bytes.
#[test]
fn smuggled_requests_do_not_reach_the_nodes_service() {
    let Some(node) = node() else { return };
    let pods = pods(&node);
    let start = Instant::now();
    let _agent = agent(&node);
    let secret = "GET /latest/user-data HTTP/1.1\r\nHost: x\r\n\r\n";
    let id = "/latest/meta-data/instance-id";
    let length = secret.len();
    let smuggled = [
        format!(
            "POST {id} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: {length}\r\n\r\n{secret}"
        ),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nContent-Length: 0\r\n\r\n{secret}"
        ),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nContent-Length: 0, {length}\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nContent-Length: +{length}\r\n\r\n{secret}"),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{secret}"
        ),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{secret}"
        ),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{secret}"),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{secret}"
        ),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nX: y\r\n Transfer-Encoding: chunked\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nX: y\r\n\tobs-fold\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\nHost: x\n\n{secret}"),
        format!("GET {id} HTTP/1.1\rHost: x\r\r{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n{secret}"),
        format!("GET {id} HTTP/1.1\r\nHost: x\r\nX:y\u{b}Content-Length: 5\r\n\r\n{secret}"),
        format!("GET {id}\r\n{secret}"),
        format!("GET {id} HTTP/1.1 \r\nHost: x\r\n\r\n{secret}"),
        format!("GET\t{id}\tHTTP/1.1\r\nHost: x\r\n\r\n{secret}"),
        format!("GET {id} /latest/user-data HTTP/1.1\r\nHost: x\r\n\r\n"),
        format!("GET {id} HTTP/9.9\r\nHost: x\r\n\r\n{secret}"),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQ\r\n\r\n{secret}"
        ),
        format!("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{secret}"),
        format!("CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n{secret}"),
        format!("GET http://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: x\r\n\r\n{secret}"),
        format!(
            "GET {id} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n{secret}{secret}"
        ),
        format!(
            "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n{secret}"
        ),
        format!(
            "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n{secret}"
        ),
        format!(
            "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: {secret}"
        ),
        format!("\r\n\r\n{secret}"),
        "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}".to_owned(),
    ];
    for pod in &pods {
        let requests: Vec<[&str; 1]> = smuggled.iter().map(|text| [text.as_str()]).collect();
        for (sent, answer) in smuggled.iter().zip(exchange(pod, &requests, 0.5)) {
            check_answer(sent, &answer);
            assert!(
                !answer.contains("of the node: /latest/user-data"),
                "{sent:?} got {answer:?}"
            );
        }
    }
    let reached = check_recorder(&node, start);
    let id = format!("GET {id}");
    let other = reached
        .iter()
        .find(|seen| **seen != id && !seen.starts_with("PUT"));
    assert_eq!(other, None, "only what was asked for by its exact path");
    // The next connection is not affected.
    assert!(
        raw(
            &pods[0],
            &request("GET", "/latest/meta-data/iam/security-credentials/", "")
        )
        .ends_with("role-a")
    );
}
