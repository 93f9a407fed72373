//! Maps the environment of the container. Variables that mean the same for metaproxy become values, and all others
//! are listed.

use serde_json::{Value, json};

use super::manifest::Workload;
use super::template::name;
use super::values::Values;
use super::variables::{Variable, Variables};
use super::words::{MASK, placeholder, shown};

/// The variables that mean the same for metaproxy.
const KEPT: [&str; 8] = [
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
    "https_proxy",
    "http_proxy",
    "no_proxy",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
];

const KEYS: &str = "credentials of a user or profile are not copied: the agent has those of the node's role. If it must have \
                    others, extraEnv can take them from a Secret";

const FILES: &str = "it names a file, which needs extraVolumes and extraVolumeMounts beside extraEnv";

/// Maps the variables of a workload's container.
pub fn map(workload: &Workload, values: &mut Values) {
    for source in workload.container["envFrom"].as_array().into_iter().flatten() {
        let (kind, reference) = match &source["configMapRef"] {
            Value::Null => ("Secret", &source["secretRef"]),
            reference => ("ConfigMap", reference),
        };
        values.left(
            format!("envFrom {kind} {}", name(reference)),
            "its variables are not in the manifest; put those that the agent needs into extraEnv",
        );
    }
    for entry in workload.container["env"].as_array().into_iter().flatten() {
        variable(entry, workload, values);
    }
}

/// Maps one variable of the container.
fn variable(entry: &Value, workload: &Workload, values: &mut Values) {
    let Some(name) = entry["name"].as_str() else {
        return;
    };
    let variables: &Variables = &workload.variables;
    let known = match variables.get(name) {
        Some(Variable::Known(value)) if placeholder(value).is_none() => Some(value.as_str()),
        _ => None,
    };
    let what = format!("env {name}");
    match name {
        "AWS_REGION" | "AWS_DEFAULT_REGION" => {
            match known.filter(|value| !value.is_empty() && variables.missing(value).is_none()) {
                Some(region) => values.set("sessions", "region", region, what),
                None => values.left(what, "its value is not in the manifest; set sessions.region"),
            }
        }
        _ if KEPT.contains(&name) => keep(entry, name, known, values),
        "AWS_STS_REGIONAL_ENDPOINTS" => values.same(what, "the regional STS is used"),
        "AWS_ACCESS_KEY_ID"
        | "AWS_SECRET_ACCESS_KEY"
        | "AWS_SESSION_TOKEN"
        | "AWS_PROFILE"
        | "AWS_SHARED_CREDENTIALS_FILE"
        | "AWS_CONFIG_FILE"
        | "AWS_ROLE_ARN"
        | "AWS_WEB_IDENTITY_TOKEN_FILE" => values.left(what, KEYS),
        "AWS_CA_BUNDLE" | "SSL_CERT_FILE" | "SSL_CERT_DIR" => values.left(what, FILES),
        "HOST_IP" | "NODE_NAME" => values.same(what, "the chart tells the agent its node"),
        _ => values.left(what, "put it into extraEnv if the agent needs it"),
    }
}

fn keep(entry: &Value, name: &str, known: Option<&str>, values: &mut Values) {
    let what = format!("env {name}");
    match known {
        Some(value) if shown(name, value).contains(MASK) => values.left(
            what,
            "its value holds a password, which is not copied; extraEnv can take it from a Secret",
        ),
        Some(value) => values.add_env(json!({ "name": name, "value": value }), what),
        None if entry["valueFrom"].is_null() => {
            values.left(what, "its value is a placeholder; put the value into extraEnv")
        }
        None => values.add_env(
            json!({ "name": name, "valueFrom": entry["valueFrom"] }),
            format!("{what}; the namespace of metaproxy must have the object that it refers to"),
        ),
    }
}
