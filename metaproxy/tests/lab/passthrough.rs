//! The node's metadata that is passed through to pods.

use std::time::{Duration, Instant};

use crate::common::http::{LIST, TTL, ask, exchange, get, raw, request, timed_exchange, token, with_token};
use crate::common::{Node, eventually, node, node_alone, outcomes, start_dial};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::imds::Behaviour;
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;

const ID: &str = "/latest/meta-data/instance-id";

fn served(behaviour: Behaviour, flags: &[&str]) -> Option<(Node, Pod, Agent)> {
    Some(served_on(node()?, behaviour, flags))
}

/// Starts an agent with a pod, and lets no other lab run beside it.
fn served_alone(behaviour: Behaviour, flags: &[&str]) -> Option<(Node, Pod, Agent)> {
    Some(served_on(node_alone()?, behaviour, flags))
}

fn served_on(node: Node, behaviour: Behaviour, flags: &[&str]) -> (Node, Pod, Agent) {
    node.imds.behave(behaviour);
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let spec = node.spec().with(&["--imds-v1", "allow"]).with(flags);
    let agent = Agent::start(&node.lab, &spec).unwrap();
    (node, a, agent)
}

/// The agent's own requests, with which it learns the node's own role.
const OWN_REQUESTS: [&str; 2] = [
    "GET /latest/meta-data/iam/info",
    "GET /latest/meta-data/iam/security-credentials/",
];

/// Returns the requests that were passed on. They are recognized by their user agent, which differs from the SDK's.
fn passed(node: &Node) -> Vec<String> {
    let ours = |seen: &metaproxy_lab::imds::Seen| {
        let agent = seen
            .headers
            .get("user-agent")
            .and_then(|agent| agent.to_str().ok());
        agent.is_some_and(|agent| agent.starts_with("metaproxy/"))
    };
    node.imds
        .seen()
        .into_iter()
        .filter(ours)
        .map(|seen| seen.request)
        .filter(|request| !OWN_REQUESTS.contains(&request.as_str()))
        .collect()
}

#[rstest]
#[case::version_2_required(Behaviour { requires_tokens: true, ..Behaviour::default() })]
#[case::version_2(Behaviour::default())]
#[case::version_1(Behaviour { has_no_tokens: true, ..Behaviour::default() })]
fn metadata_is_passed_through_with_every_version_of_the_nodes_service(#[case] behaviour: Behaviour) {
    let has_tokens = !behaviour.has_no_tokens;
    let Some((node, a, _agent)) = served(behaviour, &["--region", "us-east-1"]) else {
        return;
    };
    let requests = vec![[request("GET", ID, "")]; 50];
    for answer in exchange(&a, &requests, 2.0) {
        assert!(answer.ends_with(&format!("of the node: {ID}")), "{answer}");
        assert!(
            !answer.contains("node-token") && !answer.to_lowercase().contains(TTL),
            "{answer}"
        );
    }
    let passed = passed(&node);
    let puts = passed.iter().filter(|request| request.starts_with("PUT")).count();
    assert_eq!(
        (puts, passed.len()),
        (1, 51),
        "one token for all, the agent itself included: {passed:?}"
    );
    if has_tokens {
        node.imds.forget_tokens();
        assert_eq!(
            get(&a, ID).status,
            200,
            "a new token is had where the old one is refused"
        );
        let list = ask(&a, "GET", ID, &with_token(&token(&a, 60)));
        assert_eq!(list.status, 200);
        assert!(
            list.header(TTL).unwrap().parse::<u64>().unwrap() <= 60,
            "the pod's own token"
        );
    }
}

#[test]
fn hop_by_hop_headers_are_dropped_and_others_pass() {
    let Some((_node, a, _agent)) = served(Behaviour::default(), &[]) else {
        return;
    };
    let answer = get(&a, "/latest/meta-data/placement/headers");
    assert_eq!((answer.status, answer.body.as_str()), (200, "with headers"));
    assert_eq!(answer.header("etag"), Some("\"1\""));
    for dropped in [
        "x-of-this-hop",
        "proxy-authenticate",
        "set-cookie",
        "x-aws-ec2-metadata-token",
        TTL,
    ] {
        assert_eq!(answer.header(dropped), None, "{dropped}");
    }
    let missing = get(&a, "/latest/meta-data/placement/missing");
    assert_eq!((missing.status, missing.body.as_str()), (404, "not here"));
    let head = ask(&a, "HEAD", ID, "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[test]
fn sizes_and_times_of_answers_are_limited() {
    let Some((_node, a, _agent)) = served(Behaviour::default(), &[]) else {
        return;
    };
    let at = |path: &str| format!("/latest/meta-data/placement/{path}");
    let large = get(&a, &at("large"));
    assert!(
        large.status == 502 && large.body.contains("too long"),
        "{large:?}"
    );
    // A body without a length is streamed. If it is cut off, the final chunk is missing, so no client takes the cut
    // for its end.
    let endless = raw(&a, &request("GET", &at("endless"), ""));
    assert!(
        endless.starts_with("HTTP/1.1 200") && endless.len() < 1_200_000,
        "{}",
        endless.len()
    );
    assert!(!endless.ends_with("0\r\n\r\n"));
    let start = Instant::now();
    let slow = exchange(&a, &[[request("GET", &at("slow"), "")]], 3.0).remove(0);
    assert!(
        (3.0..9.0).contains(&start.elapsed().as_secs_f64()),
        "{:?}",
        start.elapsed()
    );
    assert!(
        slow.len() > 64 * 1024 && !slow.ends_with("0\r\n\r\n"),
        "it streamed until it was cut off"
    );
}

#[test]
fn a_service_that_is_slow_or_broken_delays_no_answer() {
    let Some((node, a, _agent)) = served_alone(Behaviour::default(), &[]) else {
        return;
    };
    assert_eq!(get(&a, &format!("{LIST}role-a")).status, 200);
    for behaviour in [
        Behaviour {
            takes: Duration::from_secs(5),
            ..Behaviour::default()
        },
        Behaviour {
            always: Some(hyper::StatusCode::UNAUTHORIZED),
            ..Behaviour::default()
        },
    ] {
        node.imds.behave(behaviour);
        let requests = vec![[request("GET", ID, "")]; 40];
        for (answer, took) in timed_exchange(&a, &requests, 3.0) {
            assert!(
                answer.starts_with("HTTP/1.1 503") && answer.contains("At the moment"),
                "{answer}"
            );
            assert!(!answer.contains("a secret of the node"), "{answer}");
            assert!(took <= 0.9, "{took} s");
        }
        assert_eq!(
            get(&a, &format!("{LIST}role-a")).status,
            200,
            "credentials are there all the same"
        );
    }
    node.imds.behave(Behaviour::default());
    eventually("and then it passes again", || get(&a, ID).status == 200);
}

#[test]
fn a_slow_token_is_obtained_in_the_background_and_renewed_while_the_old_one_is_used() {
    let slow = |takes, ttl| Behaviour {
        token_takes: Duration::from_millis(takes),
        token_ttl: Some(ttl),
        ..Behaviour::default()
    };
    let Some((node, a, _agent)) = served_alone(slow(1500, 6), &["--region", "us-east-1"]) else {
        return;
    };
    let at_once = || {
        let (answer, took) = timed_exchange(&a, &[[request("GET", ID, "")]], 3.0).remove(0);
        assert!(took <= 0.9, "{took} s");
        answer.starts_with("HTTP/1.1 200")
    };
    assert!(!at_once(), "the first token is not there yet");
    eventually("it comes", at_once);
    // Three seconds later the token is renewed, and the renewal hangs. The old token is used until it expires.
    node.imds.behave(slow(60_000, 6));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(4500) {
        assert!(at_once(), "{:?}", start.elapsed());
    }
    let tokens = || {
        let passed = passed(&node);
        passed.iter().filter(|request| request.starts_with("PUT")).count()
    };
    node.imds.behave(slow(0, 6));
    let hung = tokens();
    eventually("and then there is another", || at_once() && tokens() > hung);
    // The new token is renewed before it expires.
    let (before, start) = (tokens(), Instant::now());
    while start.elapsed() < Duration::from_millis(4500) {
        assert!(at_once(), "{:?}", start.elapsed());
    }
    assert_eq!(tokens(), before + 1);
}

/// If the service refuses the tokens that it gives, the agent does not request more and more of them, whatever pods
/// do.
#[rstest]
#[case::no_tokens_and_yet_required(Behaviour { has_no_tokens: true, requires_tokens: true, ..Behaviour::default() })]
#[case::refused(Behaviour { refuses_tokens: true, ..Behaviour::default() })]
#[case::without_life(Behaviour { token_ttl: Some(0), ..Behaviour::default() })]
fn a_service_with_a_fault_is_not_asked_for_many_tokens(#[case] behaviour: Behaviour) {
    let Some((node, a, _agent)) = served(behaviour, &["--region", "us-east-1"]) else {
        return;
    };
    let before = passed(&node).len();
    let requests = vec![[request("GET", ID, "")]; 100];
    for answer in exchange(&a, &requests, 2.0) {
        assert!(
            answer.starts_with("HTTP/1.1 503") || answer.starts_with("HTTP/1.1 200"),
            "{answer}"
        );
    }
    let passed = passed(&node).split_off(before);
    let puts = passed.iter().filter(|request| request.starts_with("PUT")).count();
    assert!(puts <= 5, "{puts}");
}

/// A pod that sends as many requests as it can does not delay another pod.
#[test]
fn one_pod_cannot_block_the_nodes_service_for_others() {
    let Some((node, a, _agent)) = served_alone(Behaviour::default(), &[]) else {
        return;
    };
    let b = node.lab.pod(PodSpec::without_role("b")).unwrap();
    assert_eq!(get(&b, ID).status, 200);
    node.imds.behave(Behaviour {
        takes: Duration::from_millis(400),
        ..Behaviour::default()
    });
    let words = ["--path", ID, "--count", "2000", "--threads", "200"];
    let mut greedy = start_dial(&a, &words);
    std::thread::sleep(Duration::from_millis(500));
    for _ in 0..10 {
        assert_eq!(get(&b, ID).status, 200);
    }
    crate::common::end_running(&mut greedy);
}

/// One pod, or several at once, send more requests than the node's service accepts.
#[rstest]
#[case::one_pod(1, 40, 20)]
#[case::eight_pods(8, 50, 100)]
fn a_flood_of_requests_is_paced_and_another_pod_is_answered_at_once(
    #[case] pods: usize,
    #[case] at_once: usize,
    #[case] in_a_second: usize,
) {
    const NAMES: [&str; 8] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"];
    const ATTACK_TIME: Duration = Duration::from_secs(5);
    let Some((node, a, _agent)) = served_alone(Behaviour::default(), &[]) else {
        return;
    };
    assert_eq!(get(&a, ID).status, 200);
    let floods: Vec<_> = NAMES[..pods]
        .iter()
        .map(|name| {
            let pod = node.lab.pod(PodSpec::without_role(name)).unwrap();
            let words = ["--path", ID, "--seconds", "5", "--threads", "50", "--keep", "100"];
            (start_dial(&pod, &words), pod)
        })
        .collect();
    let (before, start) = (passed(&node).len(), Instant::now());
    let mut asked = 0;
    while start.elapsed() < ATTACK_TIME - Duration::from_millis(500) {
        for path in [ID, "/latest/meta-data/placement/region"] {
            let (answer, took) = timed_exchange(&a, &[[request("GET", path, "")]], 3.0).remove(0);
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(took < 0.5, "{took} s");
            asked += 1;
        }
        std::thread::sleep(Duration::from_millis(100));
        let limit = at_once + in_a_second * (start.elapsed().as_secs() as usize + 1) + asked;
        let count = passed(&node).len() - before;
        assert!(count <= limit, "{count} in {:?}", start.elapsed());
    }
    let count = passed(&node).len() - before;
    assert!(count >= in_a_second * 3, "it is a pace, and no end: {count}");
    // Each request starts a Python interpreter on a busy machine, so there are only a few.
    assert!(asked >= 6, "{asked}");
    for (flood, _pod) in floods {
        let got = outcomes(flood);
        let refused = got.get("status 503").copied().unwrap_or_default();
        assert!(refused > 0, "what waits longer than SDKs do is refused: {got:?}");
    }
}

/// With the default list of paths, existing software gets the paths that it requests.
#[test]
fn monitoring_agents_and_databases_get_the_paths_that_they_request() {
    let Some((node, a, _agent)) = served(Behaviour::default(), &[]) else {
        return;
    };
    let paths = [
        // These are requested by Cassandra's and Scylla's snitches, Jitsi, Eureka, Vector, Datadog and Nomad.
        "public-ipv4",
        "public-hostname",
        "ipv6",
        // These are requested by fluent-bit, the CloudWatch agent, Telegraf, Vector and Datadog. They request the
        // list without a slash first.
        "tags/instance",
        "tags/instance/",
        "tags/instance/Name",
        "tags/instance/Cost%20Center",
        "tags/instance/iam",
        "security-groups",
        "reservation-id",
        "ami-launch-index",
        "ami-manifest-path",
        "ancestor-ami-ids",
        "kernel-id",
        "ramdisk-id",
        "product-codes",
        "profile",
        "instance-action",
        "system",
    ];
    let requests = paths.map(|path| [request("GET", &format!("/latest/meta-data/{path}"), "")]);
    for (path, answer) in paths.iter().zip(exchange(&a, &requests, 2.0)) {
        let want = format!("of the node: /latest/meta-data/{path}");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.ends_with(&want),
            "{answer}"
        );
    }
    assert_eq!(node.imds.seen_from_pods(), []);
}

/// Some clients walk the tree, and rely on every entry that a list shows.
#[test]
fn lists_show_what_a_pod_may_read_and_iam_only_if_it_has_a_role() {
    let Some((node, a, agent)) = served(Behaviour::default(), &[]) else {
        return;
    };
    let none = node.lab.pod(PodSpec::without_role("none")).unwrap();
    const LEFT: &str = "ami-id\nhostname\ninstance-id\nplacement/\npublic-ipv4\ntags/";
    let with_iam = LEFT.replace("instance-id", "iam/\ninstance-id");
    for (pod, want) in [(&a, with_iam.as_str()), (&none, LEFT)] {
        for path in [
            "/latest/meta-data/",
            "/latest/meta-data",
            "/2021-07-15/meta-data/",
        ] {
            let list = get(pod, path);
            assert_eq!((list.status, list.body.as_str()), (200, want), "{path}");
            assert_eq!(list.header("content-type"), Some("text/plain"));
        }
    }
    let head = ask(&a, "HEAD", "/latest/meta-data/", "");
    let length = head.header("content-length").unwrap();
    assert_eq!((head.status, length), (200, with_iam.len().to_string().as_str()));
    assert_eq!(get(&a, "/latest/").body, "dynamic\nmeta-data");
    assert_eq!(get(&a, "/").body, "1.0\n2021-07-15\nlatest");
    assert_eq!(get(&a, "/latest/dynamic/instance-identity/").body, "document");
    // Each entry exists for every pod.
    for (pod, list) in [(&a, with_iam.as_str()), (&none, LEFT)] {
        for entry in list.lines() {
            assert_eq!(
                get(pod, &format!("/latest/meta-data/{entry}")).status,
                200,
                "{entry}"
            );
        }
    }
    // A node without a role does not change the lists, because its pods' roles are independent of it.
    node.imds.behave(Behaviour {
        has_no_role: true,
        ..Behaviour::default()
    });
    assert_eq!(get(&a, "/latest/meta-data/").body, with_iam);
    assert_eq!(get(&none, "/latest/meta-data/").body, LEFT);
    node.imds.behave(Behaviour {
        takes: Duration::from_secs(5),
        ..Behaviour::default()
    });
    let (answer, took) = timed_exchange(&a, &[[request("GET", "/latest/meta-data/", "")]], 3.0).remove(0);
    assert!(
        answer.starts_with("HTTP/1.1 503") && took <= 0.9,
        "{took} s: {answer}"
    );
    drop(agent);
}

#[rstest]
#[case::minimal("minimal", &["placement/"])]
#[case::none("none", &[])]
#[case::none_and_one_tag("none", &["tags/"])]
fn the_pass_through_flag_limits_the_nodes_metadata(#[case] pass_through: &str, #[case] list: &[&str]) {
    let mut flags = vec!["--pass-through", pass_through, "--region", "us-east-1"];
    if list.contains(&"tags/") {
        flags.extend(["--allow-path", "tags/instance/Name"]);
    }
    let Some((node, a, _agent)) = served(Behaviour::default(), &flags) else {
        return;
    };
    let is_minimal = pass_through == "minimal";
    let status = |path: &str| get(&a, &format!("/latest/{path}")).status;
    for path in [
        "meta-data/placement/region",
        "meta-data/placement/availability-zone",
        "dynamic/instance-identity/document",
    ] {
        assert_eq!(status(path), if is_minimal { 200 } else { 404 }, "{path}");
    }
    for path in [
        "meta-data/instance-id",
        "meta-data/mac",
        "meta-data/tags/instance/iam",
    ] {
        assert_eq!(status(path), 404, "{path}");
    }
    let has_tag = list.contains(&"tags/");
    assert_eq!(
        status("meta-data/tags/instance/Name"),
        if has_tag { 200 } else { 404 }
    );
    let shown = get(&a, "/latest/meta-data/");
    if list.is_empty() {
        assert_eq!(shown.status, 404);
    } else {
        let entries: Vec<&str> = shown.body.lines().filter(|entry| *entry != "iam/").collect();
        assert_eq!(entries, list);
    }
    // The pod gets its own role, however much of the node's metadata it sees.
    assert_eq!(get(&a, LIST).body, "role-a");
    assert_eq!(get(&a, &format!("{LIST}role-a")).status, 200);
    assert_eq!(node.imds.seen_from_pods(), []);
}

#[test]
fn the_allow_path_flag_permits_more_paths_but_no_secret() {
    let more = [
        "--allow-path",
        "dynamic/fws/.*",
        "--allow-path",
        "meta-data/new-category|user-data.*|iam/.*",
    ];
    let Some((node, a, _agent)) = served(Behaviour::default(), &more) else {
        return;
    };
    for path in [
        "dynamic/fws",
        "dynamic/fws/",
        "dynamic/fws/instance-monitoring",
        "meta-data/new-category",
    ] {
        let path = format!("/latest/{path}");
        assert_eq!(get(&a, &path).body, format!("of the node: {path}"));
    }
    for path in [
        "meta-data/new-categorys",
        "user-data",
        "meta-data/iam/other",
        "meta-data/iam/security-credentials/node",
    ] {
        assert_eq!(get(&a, &format!("/latest/{path}")).status, 404, "{path}");
    }
    assert!(
        passed(&node)
            .iter()
            .all(|request| !request.contains("user-data") && !request.contains("iam"))
    );
}
