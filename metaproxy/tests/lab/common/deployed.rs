//! The files in `deploy` for Prometheus.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

pub fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(path)
}

/// Reads the alerting rules.
pub fn alert_rules() -> Vec<Value> {
    let text = fs::read_to_string(deploy("helm/metaproxy/alerts.yaml")).unwrap();
    let rules: Value = serde_yaml_ng::from_str(&text).unwrap();
    let groups = rules["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap());
    rules.cloned().collect()
}
