//! Tests of the alerting rules. `alerts.yaml` contains for each alert a case in which it fires, and a similar one in
//! which it does not.

use std::path::Path;
use std::process::Command;

use crate::deployed::{alert_rules, deploy};
use serde_json::Value;

fn promtool(words: &[&str], file: &Path) {
    let output = Command::new("promtool")
        .args(words)
        .arg(file)
        .output()
        .expect("promtool: `sudo cargo xtask setup` installs it");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn promtool_accepts_the_alerts_and_all_their_cases() {
    if !nix::unistd::geteuid().is_root() && std::env::var_os("CI").is_none() {
        eprintln!("skipped: needs promtool (sudo cargo xtask test)");
        return;
    }
    promtool(&["check", "rules"], &deploy("helm/metaproxy/alerts.yaml"));
    promtool(
        &["test", "rules"],
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/usage/alerts.yaml"),
    );
}

/// This test needs neither root nor Prometheus. An alert without a case has never been shown to fire.
#[test]
fn every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_silent() {
    let cases: Value = serde_yaml_ng::from_str(include_str!("alerts.yaml")).unwrap();
    let tests = cases["tests"].as_array().unwrap();
    let cases: Vec<&Value> = tests
        .iter()
        .flat_map(|test| test["promql_expr_test"].as_array().unwrap())
        .collect();
    for rule in alert_rules() {
        let alert = rule["alert"].as_str().unwrap();
        let of_it = |case: &&Value| {
            let expression = case["expr"].as_str().unwrap();
            expression.contains(&format!("alertname=\"{alert}\""))
        };
        let fires = |case: &&Value| !case["exp_samples"].as_array().unwrap().is_empty();
        let (firing, silent): (Vec<&Value>, Vec<&Value>) =
            cases.iter().copied().filter(of_it).partition(fires);
        assert!(!firing.is_empty(), "no case in which {alert} fires");
        assert!(!silent.is_empty(), "no case in which {alert} is silent");
        // Each label that the alert's annotations use must be among the labels with which it fires.
        for label in labels_of(&rule) {
            let with = firing[0]["exp_samples"][0]["labels"].as_str().unwrap();
            assert!(
                with.contains(&format!("{label}=\"")),
                "{alert} names {label}: {with}"
            );
        }
    }
}

/// The runbook tells an operator what to do about each alert.
#[test]
fn every_alert_leads_to_a_section_of_the_runbook() {
    let runbook = std::fs::read_to_string(deploy("docs/operations.md")).unwrap();
    let (_, sections) = runbook.split_once("\n## Alerts\n").unwrap();
    let sections: Vec<&str> = sections
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .collect();
    let mut alerts = Vec::new();
    for rule in alert_rules() {
        let alert = rule["alert"].as_str().unwrap();
        let url = rule["annotations"]["runbook_url"].as_str().unwrap();
        let section = format!("deploy/docs/operations.md#{}", alert.to_lowercase());
        assert_eq!(url, section, "{alert}");
        alerts.push(alert.to_owned());
    }
    assert_eq!(sections, alerts);
}

/// Returns the labels that an alert's annotations use.
fn labels_of(rule: &Value) -> Vec<String> {
    let annotations = rule["annotations"].to_string();
    let names = annotations.split("$labels.").skip(1);
    let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
    names
        .map(|rest| rest.chars().take_while(is_name).collect())
        .collect()
}
