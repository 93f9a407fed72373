//! The commands `explain` and `status`, and the status page, with an agent that serves pods.

use std::process::Output;

use crate::common::{ADMIN, Node, agent_binary, counts, dial, eventually, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::sts::Behaviour;
use serde_json::Value;

/// Runs a command for operators on the node.
fn run_command(node: &Node, words: &[&str]) -> Output {
    node.host_command(agent_binary())
        .args(words)
        .arg("--runtime-dir")
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap()
}

fn json(node: &Node, words: &[&str]) -> Value {
    let output = run_command(node, &[words, &["--output", "json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the audit log of an agent that logs in JSON.
fn audited(agent: &Agent) -> Vec<Value> {
    let said = agent.logged();
    let lines = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["target"] == "metaproxy::audit")
        .collect()
}

#[test]
fn explain_shows_the_answers_to_pods_and_status_shows_the_agents_state() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _without = node.lab.pod(PodSpec::without_role("without")).unwrap();
    let _malformed = node.lab.pod(PodSpec::with_role("malformed", "a b")).unwrap();
    let agent = Agent::spawn(
        &node.lab,
        &node
            .spec()
            .with(&["--log-format", "json", "--admin-address", ADMIN]),
    )
    .unwrap();
    agent.wait_for("\"ready\"").unwrap();
    assert_eq!(dial(&a, &[]), counts([("role-a", 1)]));

    let granted = json(&node, &["explain", "apps/a"]);
    assert_eq!(granted["verdict"], "granted", "{granted:#}");
    assert_eq!(granted["role"], "arn:aws:iam::123456789012:role/role-a");
    assert_eq!(granted["credentials"]["state"], "valid");
    assert_eq!(granted["answers"][0]["says"], "role-a");
    let says = granted["answers"][1]["says"].as_str().unwrap();
    let id = granted["credentials"]["accessKeyId"].as_str().unwrap();
    assert!(says.starts_with(&format!("credentials {id} until ")), "{says}");
    let whole = granted.to_string();
    assert!(!whole.contains("secret") && !whole.contains("Secret"), "{whole}");

    let refused = run_command(&node, &["explain", "apps/malformed"]);
    assert_eq!(code(&refused), Some(1));
    let refused = text(&refused.stdout);
    assert!(
        refused.contains("names the role \"a b\", which cannot be used"),
        "{refused}"
    );
    assert!(refused.contains("AssumeRoleUnauthorizedAccess"), "{refused}");
    assert_eq!(
        code(&run_command(&node, &["explain", "apps/without"])),
        Some(0),
        "it asks for nothing"
    );

    let all = run_command(&node, &["explain", "--all"]);
    assert_eq!(code(&all), Some(1));
    let all = text(&all.stdout);
    for row in [
        "apps/a          granted  arn:aws:iam::123456789012:role/role-a",
        "apps/malformed  refused",
        "apps/without    no role",
    ] {
        assert!(all.contains(row), "{row} in\n{all}");
    }

    let elsewhere = run_command(&node, &["explain", "apps/elsewhere"]);
    assert_eq!(code(&elsewhere), Some(69));
    assert!(text(&elsewhere.stderr).contains("no pod apps/elsewhere is known to the agent here"));

    let status = json(&node, &["status"]);
    assert_eq!(
        (&status["ready"], &status["mode"]),
        (&true.into(), &"enforce".into()),
        "{status:#}"
    );
    let attached: Vec<(&str, &str)> = status["attached"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["program"].as_str().unwrap(), one["target"].as_str().unwrap()))
        .collect();
    let pods = node.lab.kubepods();
    for program in [
        "mp_sock_ops",
        "mp_connect4",
        "mp_connect6",
        "mp_getpeername4",
        "mp_getpeername6",
        "mp_guard4",
    ] {
        assert!(
            attached.contains(&(program, pods.to_str().unwrap())),
            "{program} in {attached:?}"
        );
    }
    assert!(
        attached.contains(&("mp_uplink_eth", "egress of up0")),
        "{attached:?}"
    );
    assert_eq!(status["podsKnown"], 3);
    assert_eq!(status["pods"][0]["pod"], "apps/a");
    assert!(status["pods"][0]["secondsLeft"].as_u64().unwrap() > 1800);
    assert!(status["counters"]["connections served"].as_u64().unwrap() >= 1);
    let shown = run_command(&node, &["status"]);
    assert_eq!(code(&shown), Some(0));
    let counted = text(&shown.stdout);
    let (_, counted) = counted.split_once("COUNTED SINCE THE START").unwrap();
    assert!(
        counted.contains("connections served") && !counted.lines().any(|line| line.ends_with("  0")),
        "what has not happened is not reported: {counted}"
    );
    assert!(
        text(&shown.stdout).contains("enforce: ready, up "),
        "{}",
        text(&shown.stdout)
    );

    let html = node.asked_at_port("/");
    assert!(
        html.starts_with("HTTP/1.1 200") && html.contains("content-security-policy: default-src 'none'"),
        "{html}"
    );
    assert!(
        html.contains("<td>apps/malformed</td><td class=\"bad\">refused</td>"),
        "{html}"
    );
    // The admin port, which other hosts may reach, does not show a pod's answers.
    assert!(node.asked_at_port("/explain/apps/a").starts_with("HTTP/1.1 404"));
    let metrics = node.asked_at_port("/metrics");
    for line in [
        "metaproxy_requests_total{kind=\"role\",code=\"200\"} 1",
        "metaproxy_sts_calls_total{outcome=\"issued\"} 1",
        "metaproxy_sessions{state=\"valid\"} 1",
        "metaproxy_pod_verdicts{verdict=\"refused\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }

    let audit = audited(&agent);
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert_eq!(audit[0]["level"], "INFO");
    let fields = &audit[0]["fields"];
    for (field, wanted) in [
        ("pod", "a"),
        ("namespace", "apps"),
        ("service_account", "default"),
        ("role", "arn:aws:iam::123456789012:role/role-a"),
        ("session_name", "apps.a"),
        ("access_key_id", id),
        ("expires", granted["credentials"]["expires"].as_str().unwrap()),
    ] {
        assert_eq!(fields[field], wanted, "{field} of {fields}");
    }
    let said = agent.logged();
    assert!(
        !said.contains("secret-of-role-a") && !said.contains("token-of-role-a"),
        "{said}"
    );

    drop(agent);
    let gone = run_command(&node, &["status"]);
    assert_eq!(code(&gone), Some(69));
    assert!(
        text(&gone.stderr).contains("no agent answers in"),
        "{}",
        text(&gone.stderr)
    );
}

#[test]
fn the_audit_log_is_independent_of_the_log_level() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = |flags: &[&str]| {
        let flags = [&["--log-format", "json"], flags].concat();
        let agent = Agent::spawn(&node.lab, &node.spec().with(&flags)).unwrap();
        eventually("its role", || dial(&a, &[]) == counts([("role-a", 1)]));
        agent
    };
    let quiet = agent(&["--log", "error"]);
    eventually("an audit line", || audited(&quiet).len() == 1);
    assert_eq!(
        quiet.logged().lines().count(),
        1,
        "and nothing else: {}",
        quiet.logged()
    );
    drop(quiet);
    let mut without = agent(&["--audit", "off", "--log", "debug"]);
    without.wait_for("obtained Session").unwrap();
    without.stop().unwrap();
    assert!(audited(&without).is_empty(), "{}", without.logged());
}

#[test]
fn pods_and_their_roles_are_shown_on_the_node_only_even_if_the_admin_port_is_open_to_others() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let flags = ["--admin-address", "0.0.0.0:16925"];
    let agent = Agent::start(&node.lab, &node.spec().with(&flags)).unwrap();
    let host = agent.listeners().unwrap()[0].ip();
    let of_pod = |path: &str| {
        let mut curl = a.command("curl").unwrap();
        let url = format!("http://{host}:16925{path}");
        let output = curl.args(["-s", "-i", "--max-time", "5", &url]).output().unwrap();
        text(&output.stdout)
    };
    for path in ["/", "/status"] {
        let refused = of_pod(path);
        assert!(
            refused.starts_with("HTTP/1.1 403") && refused.contains("shown on the node itself only"),
            "{path}: {refused}"
        );
        assert!(!refused.contains("role-a"), "{path}: {refused}");
        assert!(node.asked_at_port(path).contains("role-a"), "{path} on the node");
    }
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert!(of_pod(path).starts_with("HTTP/1.1 200"), "{path}");
    }
}

#[test]
fn explain_and_status_show_the_last_refusal_of_sts() {
    let Some(node) = node() else { return };
    node.sts.behave(Behaviour {
        denies: Some("role-a"),
        ..Behaviour::default()
    });
    let _a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    eventually("the refusal is known", || {
        json(&node, &["explain", "apps/a"])["verdict"] == "refused"
    });
    let explained = json(&node, &["explain", "apps/a"]);
    let because = explained["because"].as_str().unwrap();
    assert!(
        because.starts_with("STS refused role arn:aws:iam::123456789012:role/role-a:"),
        "{because}"
    );
    let answered = explained["answers"][1]["says"].as_str().unwrap();
    assert_eq!(answered, format!("AssumeRoleUnauthorizedAccess: {because}"));
    assert!(
        explained["hints"][0].as_str().unwrap().contains("trust policy"),
        "{explained:#}"
    );
    let line = json(&node, &["status"])["pods"][0].clone();
    assert!(because.contains(line["lastError"].as_str().unwrap()), "{line}");
}

/// Saves a screenshot of the page to the build's temporary directory (`CARGO_TARGET_TMPDIR`), for inspection.
#[test]
fn a_browser_shows_the_page() {
    let Some(node) = node() else { return };
    let pods: Vec<_> = [
        PodSpec::with_role("api", "orders-reader"),
        PodSpec::with_role("malformed", "no such <b>name</b>"),
        PodSpec::with_role("worker", "queue-consumer"),
        PodSpec::without_role("web"),
    ]
    .into_iter()
    .map(|spec| node.lab.pod(spec).unwrap())
    .collect();
    let _agent = Agent::start(&node.lab, &node.spec().with(&["--admin-address", ADMIN])).unwrap();
    assert_eq!(dial(&pods[0], &[]), counts([("orders-reader", 1)]));
    let screenshot = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("status-page.png");
    let _ = std::fs::remove_file(&screenshot);
    let requests = node.lab.dir().join("requests.json");
    let output = node
        .host_command("chromium")
        .env("HOME", node.lab.dir())
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1280,1100",
        ])
        .arg(format!("--screenshot={}", screenshot.display()))
        .arg(format!("--log-net-log={}", requests.display()))
        .args(["--dump-dom", "http://127.0.0.1:16925/"])
        .output()
        .expect("chromium: `sudo cargo xtask setup` installs it");
    let dom = text(&output.stdout);
    for cells in [
        "<td>apps/api</td><td class=\"good\">granted</td><td class=\"role\"><code>arn:aws:iam::123456789012:role/orders-reader</code>",
        "<td>apps/worker</td><td class=\"good\">granted</td>",
        // An annotation's content stays text in the browser's DOM, because it is escaped.
        "<td>apps/malformed</td><td class=\"bad\">refused</td><td class=\"role\"><code>–</code></td><td>–</td><td>pod \
         apps/malformed gets no role: annotation iam.amazonaws.com/role of the pod names the role \"no such &lt;b&gt;name&lt;/b&gt;\"",
        "<td><code>mp_connect4</code></td>",
        "<span class=\"state good\">ready</span>",
        "4 of this node are known; with a role, or asking for one: 3",
    ] {
        assert!(dom.contains(cells), "{cells} in {dom}\n{}", text(&output.stderr));
    }
    assert!(!dom.contains("apps/web") && !dom.contains("<b>name"), "{dom}");
    assert_eq!(
        asked_for(&requests),
        ["http://127.0.0.1:16925/"],
        "and nothing else"
    );
    let drawn = std::fs::metadata(&screenshot).map_or(0, |file| file.len());
    assert!(drawn > 20_000, "{drawn} bytes of picture");
}

/// Returns the URLs that a page of the node made the browser request, from the browser's network log. The log also
/// contains the browser's own requests, such as a check for updates. These belong to no page of the node, and are
/// left out.
fn asked_for(log: &std::path::Path) -> Vec<String> {
    let log: Value = serde_json::from_str(&std::fs::read_to_string(log).unwrap()).unwrap();
    let kinds = &log["constants"]["logEventTypes"];
    let start = &kinds["URL_REQUEST_START_JOB"];
    assert!(start.is_u64(), "{kinds}");
    let events = log["events"].as_array().unwrap().iter();
    let of_the_page = events.filter(|event| {
        let key = event["params"]["network_isolation_key"].as_str();
        event["type"] == *start && key.is_some_and(|key| key.starts_with("http://127.0.0.1 "))
    });
    of_the_page
        .map(|event| event["params"]["url"].as_str().unwrap().to_owned())
        .collect()
}
