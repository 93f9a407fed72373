//! The log of a busy node, as text for operators and as JSON for programs.

use crate::common::http::{exchange, get, request};
use crate::common::sessions::{ROLE, start};
use crate::common::{counts, dial, eventually, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;
use metaproxy_lab::sts::Behaviour;
use serde_json::Value;

/// Returns manifests of pods that have no process.
fn pods(number: usize, role: impl Fn(usize) -> String) -> String {
    (0..number)
        .map(|number| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: pod-{number}, namespace: many, uid: uid-{number:012}, \
                 annotations: {{ iam.amazonaws.com/role: '{}' }} }}\n",
                role(number)
            )
        })
        .collect()
}

fn count(said: &str, wanted: &str) -> usize {
    said.lines().filter(|line| line.contains(wanted)).count()
}

/// A faulty or malicious client can put a secret anywhere in its request.
#[test]
fn no_text_of_a_request_is_in_the_log_at_any_level() {
    const SECRET: &str = "AQAEAKiGv0Xk0000SECRET";
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let agent = start(&node, &["--log", "trace", "--allow-path", "tags/.*"]);
    let targets = [
        format!("/{SECRET}"),
        format!("/latest/api/token/{SECRET}"),
        format!("/latest/meta-data/iam/security-credentials/{SECRET}"),
        format!("/latest/meta-data/placement/{SECRET}"),
        format!("/latest/meta-data/tags/{SECRET}"),
        format!("/latest/meta-data/tags/instance/{SECRET}%20{SECRET}"),
        format!("/latest/meta-data/instance-id?token={SECRET}"),
        format!("/latest/%6deta-data/{SECRET}"),
        format!("http://{SECRET}/latest/"),
    ];
    let requests: Vec<[String; 1]> = targets
        .iter()
        .map(|target| ("GET", target.as_str()))
        .chain([(SECRET, "/latest/meta-data/instance-id")])
        .map(|(method, target)| [request(method, target, &format!("x-{SECRET}: {SECRET}\r\n"))])
        .collect();
    let answers = exchange(&a, &requests, 1.5);
    assert_eq!(answers.len(), 10);
    assert!(
        answers.iter().all(|answer| answer.starts_with("HTTP/1.1 ")),
        "{answers:?}"
    );
    get(&a, "/latest/dynamic/instance-identity/document");
    agent
        .wait_for("path=/latest/dynamic/instance-identity/document")
        .unwrap();
    let said = agent.logged();
    assert!(count(&said, "path=/latest/api/token/…") == 1, "{said}");
    let secret = SECRET.to_ascii_lowercase();
    assert!(!said.to_ascii_lowercase().contains(&secret), "{said}");
}

/// An end that was requested is not a fault.
#[test]
fn an_ordinary_end_logs_no_warning_and_a_summary() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let mut agent = start(&node, &["--log", "debug"]);
    get(&a, "/latest/meta-data/iam/security-credentials/");
    let line = agent.wait_for("kind=\"role\"").unwrap();
    for part in [
        "pod=\"apps/a\"".to_owned(),
        format!("uid={}", a.uid()),
        "status=200".to_owned(),
        "took=".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
    assert!(agent.stop().unwrap().success());
    let said = agent.logged();
    assert_eq!(count(&said, " WARN ") + count(&said, " ERROR "), 0, "{said}");
    assert_eq!(count(&said, "stopped connections_served="), 1, "{said}");
    let kernel = said.lines().find(|line| line.contains("counted in the kernel"));
    assert!(kernel.is_some_and(|line| line.contains("DEBUG")), "{said}");
}

/// The error message contains each cause once.
#[test]
fn a_missing_directory_is_named_with_its_cause_once() {
    let Some(node) = node() else { return };
    let mut command = node.host_command(crate::common::agent_binary());
    let output = command
        .args([
            "run",
            "--manifests",
            "/nosuch",
            "--namespace-policy",
            "off",
            "--region",
            "eu-west-1",
        ])
        .arg("--runtime-dir")
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let cause = "No such file or directory";
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("/nosuch")).collect();
    let last = lines.last().unwrap();
    assert_eq!(last.matches(cause).count(), 1, "{said}");
}

#[test]
fn the_start_logs_the_configuration_and_the_number_of_pods() {
    let Some(node) = node() else { return };
    node.lab
        .manifest("many.yaml", &pods(30, |number| format!("role-{number}")))
        .unwrap();
    let agent = start(&node, &["--audit", "off", "--region", "eu-west-1"]);
    let line = agent.wait_for("set up").unwrap();
    for part in [
        format!("pods_from=\"{}\"", node.lab.manifests().display()),
        "base_role_arn=\"arn:aws:iam::123456789012:role/\"".to_owned(),
        "region=\"eu-west-1\"".to_owned(),
        format!("sts=\"{}\"", metaproxy_lab::sts::FakeSts::url()),
        "session_duration=1h".to_owned(),
        "imds=http://169.254.169.254".to_owned(),
        "guard=\"packets\"".to_owned(),
        "admin=\"off\"".to_owned(),
    ] {
        assert!(line.contains(&part), "{part} in {line}");
    }
    let line = agent.wait_for("metaproxy starts").unwrap();
    assert!(line.contains("mode=\"enforce\""), "{line}");
    let line = agent.wait_for("pods of this node").unwrap();
    assert!(
        line.contains("pods=30 with_role=30 refused=0 without=0"),
        "{line}"
    );
    assert_eq!(count(&agent.logged(), "has a role"), 0, "{}", agent.logged());
}

#[test]
fn a_hundred_pods_that_fail_do_not_fill_the_log() {
    let Some(node) = node() else { return };
    let fails = Some((503, "ServiceUnavailable"));
    node.sts.behave(Behaviour {
        fails,
        ..Behaviour::default()
    });
    let agent = start(&node, &[]);
    node.lab
        .manifest(
            "many.yaml",
            &pods(200, |number| {
                if number < 100 {
                    "app".to_owned()
                } else {
                    "a b".to_owned()
                }
            }),
        )
        .unwrap();
    agent.wait_for("no session: and ").unwrap();
    agent.wait_for("more pods that get no credentials").unwrap();
    let said = agent.logged();
    assert!(count(&said, "no session: no credentials") <= 20, "{said}");
    assert!(count(&said, "cannot be used") <= 20, "{said}");
    assert_eq!(count(&said, ": 200 are new, or have another role"), 1, "{said}");
    assert!(said.lines().count() < 70, "{said}");
    node.sts.behave(Behaviour::default());
    let line = agent.wait_for("session obtained; before that").unwrap();
    assert!(line.contains("failures="), "{line}");
}

#[test]
fn changes_of_a_pods_role_are_logged_and_a_pod_that_asks_without_one_is_logged_once() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "a b")).unwrap();
    let without = node.lab.pod(PodSpec::without_role("without")).unwrap();
    let agent = Agent::spawn(&node.lab, &node.spec().with(&["--log-format", "json"])).unwrap();
    agent.wait_for("\"ready\"").unwrap();
    let role = |role: &str| a.write_manifest(&[(ROLE.to_owned(), role.to_owned())]).unwrap();
    role("role-a");
    agent.wait_for("pod apps/a is refused no longer: role").unwrap();
    role("role-b");
    agent.wait_for("pod apps/a has another role, no longer").unwrap();
    role("a b");
    agent.wait_for_nth("names the role", 2).unwrap();
    for _ in 0..5 {
        assert_eq!(dial(&without, &[]), counts([("status 404", 1)]));
    }
    eventually("it is logged", || {
        agent.logged().contains("pod apps/without has no role")
    });
    assert_eq!(count(&agent.logged(), "pod apps/without has no role"), 1);
    let said = agent.logged();
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let pods = lines.iter().find(|line| line["fields"]["pods"].is_u64()).unwrap();
    assert_eq!(
        (&pods["fields"]["refused"], &pods["fields"]["without"]),
        (&1.into(), &1.into())
    );
    for line in lines {
        assert!(
            line["timestamp"].is_string() && line["target"].is_string(),
            "{line}"
        );
        assert!(
            ["INFO", "WARN"].contains(&line["level"].as_str().unwrap()),
            "{line}"
        );
        assert!(line["fields"]["message"].is_string(), "{line}");
    }
}
