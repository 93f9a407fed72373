//! The dashboard and the alerts. A Prometheus that scrapes a real agent evaluates them. `tests/usage/alerts.rs` makes
//! each alert fire.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::common::deployed::{alert_rules, deploy};
use crate::common::sessions::{ROLE, document_is_good};
use crate::common::{ADMIN, Node, agent_binary, counts, dial, node};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::PodSpec;
use serde_json::Value;

/// The interval between two scrapes.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);

/// Returns title and expression of each panel of the dashboard. The variables are replaced as Grafana would replace
/// them.
fn panels() -> Vec<(String, String)> {
    let text = fs::read_to_string(deploy("dashboards/metaproxy.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$instance", ".*")
                .replace("$__rate_interval", "30s");
            found.push((panel["title"].as_str().unwrap().to_owned(), expression));
        }
    }
    found
}

/// Returns name and expression of each alert.
fn alerts() -> Vec<(String, String)> {
    let text = |rule: &Value, field: &str| rule[field].as_str().unwrap().to_owned();
    alert_rules()
        .iter()
        .map(|rule| (text(rule, "alert"), text(rule, "expr")))
        .collect()
}

/// A Prometheus on the node. Dropping this value kills the process.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prometheus(node: &Node) -> Prometheus {
    let dir = node.lab.dir().join("prometheus");
    fs::create_dir(&dir).unwrap();
    let config = dir.join("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: {0}s, evaluation_interval: {0}s }}\nrule_files: [{1}]\nscrape_configs:\n\
         - {{ job_name: metaproxy, static_configs: [{{ targets: ['{ADMIN}'] }}] }}\n",
        SCRAPE_INTERVAL.as_secs(),
        deploy("helm/metaproxy/alerts.yaml")
            .canonicalize()
            .unwrap()
            .display()
    );
    fs::write(&config, text).unwrap();
    let mut command = node.host_command("prometheus");
    command
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
        .args(["--web.listen-address=127.0.0.1:9090", "--log.level=warn"])
        .stdout(Stdio::null());
    Prometheus(
        command
            .spawn()
            .expect("prometheus: `sudo cargo xtask setup` installs it"),
    )
}

/// Returns the answer of Prometheus' API, or `Null` before Prometheus listens.
fn api(node: &Node, path: &str, query: &str) -> Value {
    let output = node
        .host_command("curl")
        .args([
            "-s",
            "--max-time",
            "5",
            "-G",
            &format!("http://127.0.0.1:9090{path}"),
        ])
        .args(["--data-urlencode", &format!("query={query}")])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}

fn result(node: &Node, query: &str) -> Vec<Value> {
    let answer = api(node, "/api/v1/query", query);
    assert_eq!(answer["status"], "success", "{query}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// Removes the filter of a panel that shows faults only, so that the expression has a result without a fault.
fn unfiltered(expression: &str) -> &str {
    expression.strip_suffix(" == 0").unwrap_or(expression)
}

/// Returns the panels that have no finite number to show, with their results.
fn empty_panels(node: &Node) -> Vec<String> {
    let is_finite = |series: &Value| {
        let value = series["value"][1].as_str().unwrap();
        value.parse::<f64>().unwrap().is_finite()
    };
    panels()
        .into_iter()
        .map(|(title, expression)| {
            let found = result(node, unfiltered(&expression));
            (
                found.iter().any(is_finite),
                format!("{title}: {expression}: {found:?}"),
            )
        })
        .filter_map(|(shows, what)| (!shows).then_some(what))
        .collect()
}

#[test]
fn every_panel_has_a_number_to_show_and_every_alert_can_be_evaluated() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-0")).unwrap();
    let _malformed = node.lab.pod(PodSpec::with_role("malformed", "a b")).unwrap();
    let _agent = Agent::start(&node.lab, &node.spec().with(&["--admin-address", ADMIN])).unwrap();
    let _prometheus = prometheus(&node);
    crate::common::eventually_within(Duration::from_secs(30), "Prometheus answers", || {
        api(&node, "/api/v1/query", "1")["status"] == "success"
    });
    // Rates and their quantiles need two scrapes with requests and new sessions between them. Each round gives the
    // pod another role, whose session comes at the pace of new sessions, and then waits for a scrape.
    let (start, mut round) = (Instant::now(), 0);
    loop {
        round += 1;
        let role = format!("role-{round}");
        a.write_manifest(&[(ROLE.to_owned(), role.clone())]).unwrap();
        crate::common::eventually("it has the role", || {
            dial(&a, &[]) == counts([(role.as_str(), 1)])
        });
        crate::common::eventually("its session is there", || document_is_good(&a, &role));
        std::thread::sleep(SCRAPE_INTERVAL);
        let empty = empty_panels(&node);
        if empty.is_empty() {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{empty:#?}");
    }

    let rules = api(&node, "/api/v1/rules", "");
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), alerts().len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        // This node has no fault except for the refused pod. MetaproxySlow is skipped, because its state depends on
        // the machine's speed.
        let expected = match rule["name"].as_str().unwrap() {
            "MetaproxySlow" => continue,
            "MetaproxyPodsRefused" => "pending",
            _ => "inactive",
        };
        assert_eq!(rule["state"], expected, "{rule}");
    }
}

/// If a metric is renamed, an alert that uses the old name never fires.
#[test]
fn the_agent_exports_every_metric_of_dashboard_and_alerts() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = Agent::start(&node.lab, &node.spec()).unwrap();
    dial(&a, &[]);
    let scraped = node.asked("/metrics");
    let (_, scraped) = scraped.split_once("\r\n\r\n").unwrap();
    let there: BTreeSet<&str> = scraped
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(['{', ' ']).next())
        .collect();
    let name = |text: &str| -> Vec<String> {
        let parts = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        parts
            .filter(|part| part.starts_with("metaproxy_"))
            .map(str::to_owned)
            .collect()
    };
    let used: BTreeSet<String> = panels()
        .iter()
        .chain(&alerts())
        .flat_map(|(_, expression)| name(expression))
        .collect();
    assert!(used.len() > 10, "{used:?}");
    for metric in used {
        assert!(there.contains(metric.as_str()), "{metric} is not among {there:?}");
    }
    // The same is true if the value of a label is renamed.
    let series: Vec<&str> = scraped.lines().filter(|line| !line.starts_with('#')).collect();
    for (title, expression) in panels().iter().chain(&alerts()) {
        for selector in expression.split("metaproxy_").skip(1) {
            let end = selector.find([')', '[', ' ', '=']).unwrap_or(selector.len());
            let Some((name, matchers)) = selector.split_once('{').filter(|(name, _)| name.len() < end) else {
                continue;
            };
            let name = format!("metaproxy_{name}{{");
            for matcher in matchers.split('}').next().unwrap().split(',') {
                let Some((label, values)) =
                    matcher.split_once('=').filter(|(label, _)| !label.ends_with('!'))
                else {
                    continue;
                };
                let values = values.trim_start_matches('~').trim_matches(['"', '\'']);
                for value in values.split('|').filter(|value| *value != ".*") {
                    let wanted = format!("{label}=\"{value}\"");
                    let is_there = |line: &&&str| line.starts_with(&name) && line.contains(&wanted);
                    assert!(
                        series.iter().find(is_there).is_some(),
                        "{title}: nothing has {name}{wanted}"
                    );
                }
            }
        }
    }
    // operations.md must describe exactly the metrics that the agent exports.
    let document = include_str!("../../../deploy/docs/operations.md");
    let table: BTreeSet<String> = document
        .lines()
        .filter(|line| line.starts_with("| `metaproxy_"))
        .flat_map(name)
        .collect();
    for metric in &table {
        let is_there = there.contains(metric.as_str()) || there.contains(format!("{metric}_count").as_str());
        assert!(is_there, "operations.md: {metric} is not among {there:?}");
    }
    for metric in there {
        let base = ["_bucket", "_count", "_sum"]
            .iter()
            .find_map(|end| metric.strip_suffix(end))
            .unwrap_or(metric);
        assert!(table.contains(base), "operations.md does not tell of {metric}");
    }
}

/// Series take memory in each Prometheus, so their number must not grow with the number of pods.
#[test]
fn a_thousand_pods_make_no_more_series_than_one() {
    let Some(node) = node() else { return };
    let _agent = Agent::start(&node.lab, &node.spec()).unwrap();
    let series = || -> BTreeSet<String> {
        let text = node.asked("/metrics");
        let (_, text) = text.split_once("\r\n\r\n").unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| line.rsplit_once(' ').unwrap().0.to_owned())
            .collect()
    };
    let before = series();
    assert!(before.len() > 80, "{before:?}");
    let pods: String = (0..1000)
        .map(|number| {
            let role = if number % 2 == 0 { format!("role-{number}") } else { "a b".to_owned() };
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{ name: pod-{number}, namespace: ns-{number}, uid: uid-{number:012}, \
                 annotations: {{ iam.amazonaws.com/role: '{role}' }} }}\n"
            )
        })
        .collect();
    node.lab.manifest("thousand.yaml", &pods).unwrap();
    // The pods are read while the sessions of half of them are fetched.
    crate::common::eventually_within(Duration::from_secs(60), "they are known", || {
        json_status(&node)["podsKnown"] == 1000
    });
    let mut after = series();
    // This metric exists only if there is a session.
    after.remove("metaproxy_session_least_left_seconds");
    assert_eq!(after, before);
    assert!(
        !after
            .iter()
            .any(|series| series.contains("pod-") || series.contains("role-"))
    );
}

fn json_status(node: &Node) -> Value {
    let output = node
        .host_command(agent_binary())
        .args(["status", "--output", "json", "--runtime-dir"])
        .arg(node.lab.runtime_dir())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_default()
}
