//! The rest of the pod template: what the chart has a value for is mapped, and everything else is listed with the reason why
//! it was left out.

use serde_json::{Value, json};

use super::manifest::Workload;
use super::values::Values;
use super::variables::{Variable, Variables};
use super::words::{MASK, placeholder, shown};

/// Variables of the agent that mean the same for metaproxy.
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

/// Maps what stands around the command line of the container.
pub fn map(workload: &Workload, values: &mut Values) {
    if workload.template.is_null() {
        return;
    }
    let spec = &workload.template["spec"];
    if workload.name.starts_with("Pod ") {
        values.left(
            workload.name.clone(),
            "a static pod runs until its file is taken out of the kubelet's staticPodPath on each node; deleting the pod does not \
             end it",
        );
    }
    // Where a server of kiam's ran, and how, is no matter: there is none. What shapes its calls to AWS is.
    let is_server = workload.is_part("server");
    if is_server {
        values.left(
            format!("pod template of {}", workload.name),
            "there is no server; its environment is read as the agent's, as that asks STS now",
        );
    } else {
        fields(spec, POD, values);
        pod(spec, values);
        fields(&workload.container, CONTAINER, values);
        containers(spec, &workload.container, values);
        annotations(&workload.template["metadata"], values);
    }
    pull_secrets(spec, values);
    for source in workload.container["envFrom"].as_array().into_iter().flatten() {
        let (kind, reference) = match &source["configMapRef"] {
            Value::Null => ("Secret", &source["secretRef"]),
            reference => ("ConfigMap", reference),
        };
        values.left(
            format!("envFrom {kind} {}", name(reference)),
            "its variables are not in the manifest; look which of them the agent needs, for extraEnv",
        );
    }
    for entry in workload.container["env"].as_array().into_iter().flatten() {
        variable(entry, workload, values);
    }
}

/// What is said of a field.
#[derive(Clone, Copy)]
enum Field {
    /// It is read elsewhere, or says nothing of its own.
    Read,
    /// The chart does it by itself.
    Same(&'static str),
    /// It is left out.
    Left(&'static str),
}

use Field::{Left, Read, Same};

const OWN_SECURITY: &str = "the chart has what the agent needs (`hardened` for less)";
const OWN_PROBES: &str = "the chart has probes of its own";

/// Fields of a pod's spec.
const POD: &[(&str, Field)] = &[
    ("affinity", Read),
    ("containers", Read),
    ("imagePullSecrets", Read),
    ("initContainers", Read),
    ("nodeSelector", Read),
    ("priorityClassName", Read),
    ("schedulerName", Read),
    ("volumes", Read),
    (
        "dnsPolicy",
        Left("the chart's is Default: the node's resolver, which works before the cluster's does"),
    ),
    ("hostNetwork", Same("the agent runs in the node's network")),
    ("hostPID", Same("the chart sets what the agent needs of the host")),
    ("restartPolicy", Same("a DaemonSet's pods always restart")),
    ("tolerations", Same("the chart's pods tolerate every taint")),
    ("securityContext", Left(OWN_SECURITY)),
    (
        "dnsConfig",
        Left("the chart has no value for it; the node's resolver is used"),
    ),
    (
        "hostAliases",
        Left(
            "the chart has no value for it. If it gave STS another address, sessions.stsEndpoint names that, or the node's \
             /etc/hosts does",
        ),
    ),
    (
        "nodeName",
        Left("the chart's pods run on every node that nodeSelector takes"),
    ),
    (
        "serviceAccount",
        Left("the chart makes a service account of its own (serviceAccount.name)"),
    ),
    (
        "serviceAccountName",
        Left(
            "the chart makes a service account of its own (serviceAccount.name). If the old one had a role by IRSA, name it in \
             serviceAccount.annotations",
        ),
    ),
    (
        "terminationGracePeriodSeconds",
        Left("the chart's is enough for draining"),
    ),
];

/// Fields of a container.
const CONTAINER: &[(&str, Field)] = &[
    ("args", Read),
    ("command", Read),
    ("env", Read),
    ("envFrom", Read),
    ("image", Read),
    ("imagePullPolicy", Read),
    ("name", Read),
    ("terminationMessagePath", Read),
    ("terminationMessagePolicy", Read),
    ("volumeMounts", Read),
    (
        "lifecycle",
        Left("there is no rule to remove at the end: the kernel detaches everything when the process ends"),
    ),
    ("livenessProbe", Same(OWN_PROBES)),
    ("readinessProbe", Same(OWN_PROBES)),
    ("startupProbe", Same(OWN_PROBES)),
    ("ports", Left("no port of the node is taken")),
    (
        "resources",
        Left("they were measured for another program; `resources` has the agent's"),
    ),
    ("securityContext", Left(OWN_SECURITY)),
];

fn fields(of: &Value, known: &[(&str, Field)], values: &mut Values) {
    for (name, value) in of.as_object().into_iter().flatten() {
        if is_empty(value) {
            continue;
        }
        match known.iter().find(|(known, _)| known == name) {
            Some((_, Read)) => {}
            Some((_, Same(why))) => values.same(name.clone(), *why),
            Some((_, Left(why))) => values.left(name.clone(), *why),
            None => values.left(
                name.clone(),
                "not known to this program; look whether the agent needs it",
            ),
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn pod(spec: &Value, values: &mut Values) {
    for name in ["nodeSelector", "affinity"] {
        if !is_empty(&spec[name]) {
            let key = if name == "affinity" {
                "affinity"
            } else {
                "nodeSelector"
            };
            values.set("", key, spec[name].clone(), "As before");
        }
    }
    if let Some(class) = spec["priorityClassName"]
        .as_str()
        .filter(|class| !class.is_empty())
    {
        if class == "system-node-critical" {
            values.same("priorityClassName", "the chart's is system-node-critical");
        } else {
            values.left(
                format!("priorityClassName {class}"),
                "the chart's is system-node-critical: pods without an agent have no role. priorityClassName sets another",
            );
        }
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        values.left(
            format!("volume {}", name(volume)),
            "the chart mounts what the agent needs; extraVolumes and extraVolumeMounts take more, such as certificates",
        );
    }
}

fn pull_secrets(spec: &Value, values: &mut Values) {
    let secrets = spec["imagePullSecrets"].as_array().into_iter().flatten();
    let names: Vec<&str> = secrets.map(name).collect();
    if !names.is_empty() {
        values.set(
            "image",
            "pullSecrets",
            names,
            "As before; the namespace of metaproxy must have them, and they must be of its image's registry",
        );
    }
}

fn containers(spec: &Value, own: &Value, values: &mut Values) {
    let more = spec["containers"].as_array().into_iter().flatten();
    for container in more.filter(|container| *container != own) {
        values.left(
            format!("container {}", name(container)),
            "the chart runs no container but its own; look what it did",
        );
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        values.left(
            format!("init container {}", name(container)),
            "the chart runs none; look what it did: a rule of iptables needs no counterpart",
        );
    }
}

fn annotations(metadata: &Value, values: &mut Values) {
    let keys = metadata["annotations"].as_object().into_iter().flatten();
    for (key, _) in keys.filter(|(key, _)| !key.starts_with("checksum/")) {
        let why = if key.starts_with("prometheus.io/") {
            "it named the old port; with adminAddress set, podMonitor or podAnnotations name the new one"
        } else {
            "look whether the agent's pods need it, for podAnnotations"
        };
        values.left(format!("annotation {key}"), why);
    }
}

/// One variable of the container.
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
        "AWS_REGION" | "AWS_DEFAULT_REGION" => match known.filter(|value| variables.missing(value).is_none())
        {
            Some(region) => values.set("sessions", "region", region, what),
            None => values.left(what, "its value is not in the manifest; sessions.region takes it"),
        },
        _ if KEPT.contains(&name) => keep(entry, name, known, values),
        "AWS_STS_REGIONAL_ENDPOINTS" => values.same(what, "STS of the region is asked"),
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
        _ => values.left(what, "look whether the agent needs it, for extraEnv"),
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
            values.left(what, "its value is a placeholder; extraEnv takes it")
        }
        None => values.add_env(
            json!({ "name": name, "valueFrom": entry["valueFrom"] }),
            format!("{what}; the namespace of metaproxy must have what it refers to"),
        ),
    }
}

fn name(of: &Value) -> &str {
    of["name"].as_str().unwrap_or("?")
}
