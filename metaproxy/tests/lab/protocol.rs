//! The metadata protocol as a pod sees it, over real sockets.

use std::time::Duration;

use crate::common::http::{LIST, Response, TTL, ask, exchange, request, token, with_token};
use crate::common::{Node, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};

/// A pod with role `team/role-a`, one without a role, one whose annotation is malformed, and an agent.
struct Served {
    a: Pod,
    none: Pod,
    refused: Pod,
    agent: Agent,
    node: Node,
}

fn served() -> Option<Served> {
    let node = node()?;
    let a = node.lab.pod(PodSpec::with_role("a", "team/role-a")).unwrap();
    let none = node.lab.pod(PodSpec::without_role("none")).unwrap();
    let refused = node
        .lab
        .pod(PodSpec::with_role("refused", "arn:aws:iam::1:role/broken"))
        .unwrap();
    let agent = node.agent();
    Some(Served {
        a,
        none,
        refused,
        agent,
        node,
    })
}

/// The required answer. A header whose value is `*` must be present with any value.
struct Want {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Body,
}

enum Body {
    /// The body is exactly this text.
    Is(&'static str),
    /// The body is an HTML page that contains this text.
    Says(&'static str),
    /// The body is JSON with exactly these fields in this order. The value `TIME` stands for any time.
    Json(&'static [(&'static str, &'static str)]),
    Token,
}

const RESOURCE: &[(&str, &str)] = &[
    ("content-type", "text/plain"),
    ("server", "EC2ws"),
    ("accept-ranges", "none"),
    ("last-modified", "*"),
    ("content-length", "*"),
];
const PAGE: &[(&str, &str)] = &[("content-type", "text/html"), ("server", "EC2ws")];

fn is(body: &'static str) -> Want {
    Want {
        status: 200,
        headers: RESOURCE,
        body: Body::Is(body),
    }
}

fn json(fields: &'static [(&'static str, &'static str)]) -> Want {
    Want {
        status: 200,
        headers: RESOURCE,
        body: Body::Json(fields),
    }
}

fn says(status: u16, sentence: &'static str) -> Want {
    Want {
        status,
        headers: PAGE,
        body: Body::Says(sentence),
    }
}

impl Want {
    fn check(&self, what: &str, answer: &Response) {
        assert_eq!(answer.status, self.status, "{what}: {answer:?}");
        for (name, value) in self.headers {
            let found = answer
                .header(name)
                .unwrap_or_else(|| panic!("{what}: no {name}: {answer:?}"));
            assert!(*value == "*" || found == *value, "{what}: {name} is {found}");
        }
        match &self.body {
            Body::Is(body) => assert_eq!(answer.body, *body, "{what}: byte for byte"),
            Body::Says(sentence) => assert!(answer.body.contains(sentence), "{what}: {}", answer.body),
            Body::Token => assert!(
                answer.body.len() == 56 && answer.body.bytes().all(|byte| byte.is_ascii_graphic()),
                "{what}: exactly the token, as long as EC2's: {:?}",
                answer.body
            ),
            Body::Json(fields) => check_json(what, &answer.body, fields),
        }
    }
}

fn check_json(what: &str, body: &str, fields: &[(&str, &str)]) {
    assert!(
        body.starts_with('{') && body.ends_with('}'),
        "{what}: no newline after it: {body:?}"
    );
    // The order matters, because some clients are line-based scripts.
    let lines: Vec<(&str, &str)> = body
        .lines()
        .filter_map(|line| line.trim().trim_end_matches(',').split_once(": "))
        .map(|(name, value)| (name.trim_matches('"'), value.trim_matches('"')))
        .collect();
    assert_eq!(lines.len(), fields.len(), "{what}: {body}");
    for ((name, value), (want_name, want)) in lines.iter().zip(fields) {
        assert_eq!(name, want_name, "{what}: {body}");
        match *want {
            "TIME" => assert!(
                value.len() == 20
                    && value.ends_with('Z')
                    && value.as_bytes()[10] == b'T'
                    && !value.contains('.'),
                "{what}: YYYY-MM-DDTHH:MM:SSZ: {value}"
            ),
            prefix if prefix.ends_with('…') => {
                assert!(
                    value.starts_with(prefix.trim_end_matches('…')),
                    "{what}: {name} is {value}"
                );
            }
            want => assert_eq!(*value, want, "{what}: {name}"),
        }
    }
}

const DOCUMENT: &[(&str, &str)] = &[
    ("Code", "Success"),
    ("LastUpdated", "TIME"),
    ("Type", "AWS-HMAC"),
    ("AccessKeyId", "ASIA…"),
    ("SecretAccessKey", "secret-of-role-a"),
    ("Token", "token-of-role-a"),
    ("Expiration", "TIME"),
];
const EXTENDED: &[(&str, &str)] = &[
    DOCUMENT[0],
    DOCUMENT[1],
    DOCUMENT[2],
    DOCUMENT[3],
    DOCUMENT[4],
    DOCUMENT[5],
    DOCUMENT[6],
    ("AccountId", "123456789012"),
];
const INFO: &[(&str, &str)] = &[
    ("Code", "Success"),
    ("LastUpdated", "TIME"),
    (
        "InstanceProfileArn",
        "arn:aws:iam::123456789012:instance-profile/role-a",
    ),
    ("InstanceProfileId", "AIPA…"),
];
const REFUSED: &[(&str, &str)] = &[
    ("Code", "AssumeRoleUnauthorizedAccess"),
    (
        "Message",
        "pod apps/refused gets no role: annotation iam.amazonaws.com/role of the pod names the role…",
    ),
    ("LastUpdated", "TIME"),
];

/// Pods send each request of the protocol. The test checks status, headers and body of each answer.
#[test]
fn every_request_of_the_protocol_gets_the_required_answer() {
    let Some(served) = served() else { return };
    let (a, none, refused) = (&served.a, &served.none, &served.refused);
    let own = token(a, 600);
    let others = token(none, 600);
    let own_header: &'static str = with_token(&own).leak();
    let others_header: &'static str = with_token(&others).leak();

    const META: &str = "/latest/meta-data";
    let ttl = |value: &str| -> &'static str { format!("{TTL}: {value}\r\n").leak() };
    let issued = |seconds: &'static str| Want {
        status: 200,
        headers: Box::leak(Box::new([
            ("content-type", "text/plain"),
            (TTL, seconds),
            ("server", "EC2ws"),
        ])),
        body: Body::Token,
    };
    let only_put = || Want {
        headers: &[("allow", "PUT")],
        ..says(405, "PUT")
    };
    let only_get = || Want {
        headers: &[("allow", "GET, HEAD")],
        ..says(405, "GET")
    };
    let bad_ttl = || says(400, "1 to 21600");
    let mut cases: Vec<(&Pod, &str, String, &str, Want)> = Vec::new();
    let path = |path: &str| format!("{META}/{path}");

    // These cases are about session tokens.
    let put = || "/latest/api/token".to_owned();
    for seconds in ["1", "60", "21600"] {
        cases.push((a, "PUT", put(), ttl(seconds), issued(seconds)));
    }
    cases.push((none, "PUT", put(), ttl("60"), issued("60")));
    for bad in ["0", "21601", "-1", "+5", "1.5", "x", "", "99999999999999999999"] {
        cases.push((a, "PUT", put(), ttl(bad), bad_ttl()));
    }
    cases.push((a, "PUT", put(), "", bad_ttl()));
    // Some clients add the header again with each retry.
    let twice: &'static str = ttl("60").repeat(2).leak();
    cases.push((a, "PUT", put(), twice, issued("60")));
    let two: &'static str = format!("{}{}", ttl("60"), ttl("61")).leak();
    cases.push((a, "PUT", put(), two, bad_ttl()));
    cases.push((a, "PUT", "/latest/api/token/".to_owned(), ttl("60"), issued("60")));
    let forwarded = "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nX-Forwarded-For: 1.2.3.4\r\n";
    cases.push((a, "PUT", put(), forwarded, says(403, "X-Forwarded-For")));
    cases.push((
        a,
        "GET",
        LIST.to_owned(),
        "x-forwarded-for: \r\n",
        says(403, "X-Forwarded-For"),
    ));
    for method in ["GET", "HEAD", "POST", "DELETE", "OPTIONS"] {
        let want = only_put();
        let want = if method == "HEAD" {
            Want {
                body: Body::Is(""),
                ..want
            }
        } else {
            want
        };
        cases.push((a, method, put(), "", want));
    }
    let with_ttl = || Want {
        headers: &[("content-type", "text/plain"), (TTL, "*")],
        ..is("role-a")
    };
    cases.push((a, "GET", LIST.to_owned(), own_header, with_ttl()));
    for bad in [
        "X-aws-ec2-metadata-token: forged\r\n",
        "X-aws-ec2-metadata-token:\r\n",
        others_header,
    ] {
        cases.push((a, "GET", LIST.to_owned(), bad, says(401, "token")));
        cases.push((a, "GET", path("instance-id"), bad, says(401, "token")));
        cases.push((a, "GET", "/latest/user-data".to_owned(), bad, says(401, "token")));
    }
    for both in [format!("{own_header}{others_header}"), others_header.repeat(2)] {
        cases.push((a, "GET", LIST.to_owned(), both.leak(), says(401, "token")));
    }
    cases.push((a, "GET", LIST.to_owned(), own_header.repeat(3).leak(), with_ttl()));

    // These cases are about credentials, with every version.
    for version in ["latest", "1.0", "2009-04-04", "2021-07-15", "2024-04-11"] {
        let iam = |rest: &str| format!("/{version}/meta-data/iam{rest}");
        for slash in ["", "/"] {
            cases.push((a, "GET", iam(slash), "", is("info\nsecurity-credentials/")));
            for list in ["/security-credentials", "/security-credentials-extended"] {
                cases.push((a, "GET", iam(&format!("{list}{slash}")), "", is("role-a")));
                cases.push((refused, "GET", iam(&format!("{list}{slash}")), "", is("broken")));
                cases.push((
                    none,
                    "GET",
                    iam(&format!("{list}{slash}")),
                    "",
                    says(404, "pod apps/none has no role"),
                ));
            }
        }
        cases.push((a, "GET", iam("/security-credentials/role-a"), "", json(DOCUMENT)));
        cases.push((
            a,
            "GET",
            iam("/security-credentials-extended/role-a"),
            "",
            json(EXTENDED),
        ));
        cases.push((a, "GET", iam("/info"), "", json(INFO)));
        cases.push((none, "GET", iam("/info"), "", says(404, "no role")));
        cases.push((none, "GET", iam(""), "", says(404, "no role")));
        cases.push((refused, "GET", iam("/info"), "", json(REFUSED)));
        cases.push((
            refused,
            "GET",
            iam("/security-credentials/broken"),
            "",
            json(REFUSED),
        ));
        cases.push((
            refused,
            "GET",
            iam("/security-credentials-extended/broken"),
            "",
            json(REFUSED),
        ));
        // Clients of kube2iam have such paths hard-coded, and other clients add a slash.
        for spelling in [
            "role-a/",
            "team/role-a",
            "team/role-a/",
            "/role-a",
            "role%2Da",
            "arn:aws:iam::123456789012:role/team/role-a",
        ] {
            let own = iam(&format!("/security-credentials/{spelling}"));
            cases.push((a, "GET", own, "", json(DOCUMENT)));
            let own = iam(&format!("/security-credentials-extended/{spelling}"));
            cases.push((a, "GET", own, "", json(EXTENDED)));
        }
        cases.push((a, "GET", iam("/info/"), "", json(INFO)));
        let with_path = iam("/security-credentials/team/broken/");
        cases.push((refused, "GET", with_path, "", json(REFUSED)));
        for other in [
            "node",
            "role-b",
            "ROLE-A",
            "team",
            "role-a%20",
            "am/role-a",
            "other/role-a",
            "team/role-a/x",
            "arn:aws:iam::123456789012:role/role-a",
            "arn:aws:iam::210987654321:role/team/role-a",
        ] {
            let other = iam(&format!("/security-credentials/{other}"));
            cases.push((a, "GET", other, "", says(404, "")));
        }
        cases.push((
            none,
            "GET",
            iam("/security-credentials/role-a"),
            "",
            says(404, "no role"),
        ));
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get"] {
        cases.push((a, method, format!("{LIST}role-a"), "", only_get()));
        cases.push((a, method, path("instance-id"), "", only_get()));
    }
    cases.push((a, "HEAD", LIST.to_owned(), "", is("")));
    cases.push((a, "HEAD", format!("{LIST}role-a"), "", is("")));

    // These cases are about the node's metadata, and about paths that pods may not read.
    for pod in [a, none, refused] {
        let of_node = Want {
            status: 200,
            headers: &[],
            body: Body::Is("of the node: /latest/meta-data/instance-id"),
        };
        cases.push((pod, "GET", path("instance-id"), "", of_node));
        cases.push((
            pod,
            "GET",
            "/latest/user-data".to_owned(),
            "",
            says(404, "runs as a pod with hostNetwork"),
        ));
        let signature = "/latest/dynamic/instance-identity/pkcs7".to_owned();
        cases.push((
            pod,
            "GET",
            signature,
            "",
            says(404, "runs as a pod with hostNetwork"),
        ));
        cases.push((
            pod,
            "GET",
            path("no-such-category"),
            "",
            says(404, "--allow-path"),
        ));
        cases.push((pod, "GET", path("%69am/other"), "", says(404, "plain form")));
        cases.push((
            pod,
            "GET",
            "http://169.254.169.254/latest/".to_owned(),
            "",
            says(400, "path"),
        ));
        cases.push((pod, "GET", "*".to_owned(), "", says(404, "plain form")));
    }

    for pod in [a, none, refused] {
        let of_pod: Vec<_> = cases.iter().filter(|case| case.0.uid() == pod.uid()).collect();
        let requests: Vec<[String; 1]> = of_pod
            .iter()
            .map(|(_, method, target, headers, _)| [request(method, target, headers)])
            .collect();
        for ((_, method, target, headers, want), answer) in of_pod.iter().zip(exchange(pod, &requests, 2.0)) {
            let what = format!("{method} {target} {headers:?}");
            let answer = Response::parse(&answer).unwrap_or_else(|| panic!("{what}: {answer:?}"));
            want.check(&what, &answer);
        }
    }
    assert!(cases.len() > 150, "{}", cases.len());
    assert_eq!(served.node.imds.seen_from_pods(), []);
    let calls = served.node.sts.calls();
    assert_eq!(calls.len(), 1);
    assert_eq!(
        (calls[0].role.as_str(), calls[0].session.as_str()),
        ("arn:aws:iam::123456789012:role/team/role-a", "apps.a")
    );
}

#[test]
fn tokens_expire_and_outlive_the_agent() {
    let Some(mut served) = served() else { return };
    let one = token(&served.a, 1);
    let long = token(&served.a, 600);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(
        ask(&served.a, "GET", LIST, &with_token(&one)).status,
        401,
        "it has expired"
    );
    served.agent.stop().unwrap();
    let _agent = served.node.agent();
    let list = ask(&served.a, "GET", LIST, &with_token(&long));
    assert_eq!((list.status, list.body.as_str()), (200, "role-a"));
    let left: u64 = list.header(TTL).unwrap().parse().unwrap();
    assert!((580..600).contains(&left), "{left}");
}
