//! Maps the rest of the pod template. A field for which the chart has a value is mapped, and every other is listed
//! with the reason why it is left out.

use serde_json::Value;

use super::environment;
use super::manifest::Workload;
use super::values::Values;

/// Maps the fields around the command line of the container.
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
    // Scheduling of kiam's server has no counterpart, because metaproxy has no server. Its settings for calls to AWS
    // have a counterpart.
    let is_server = workload.is_part("server");
    if is_server {
        values.left(
            format!("pod template of {}", workload.name),
            "there is no server; its environment is used for the agent, which calls STS now",
        );
    } else {
        fields(spec, POD, values);
        pod(spec, values);
        fields(&workload.container, CONTAINER, values);
        containers(spec, &workload.container, values);
        annotations(&workload.template["metadata"], values);
    }
    pull_secrets(spec, values);
    environment::map(workload, values);
}

/// How a field is treated.
#[derive(Clone, Copy)]
enum Field {
    /// Another function reads the field, or it has no meaning of its own.
    Read,
    /// The chart always sets the field.
    Same(&'static str),
    /// The field is left out.
    Left(&'static str),
}

use Field::{Left, Read, Same};

const OWN_SECURITY: &str = "the chart has what the agent needs (`hardened` for less)";
const OWN_PROBES: &str = "the chart has probes of its own";

/// The fields of a pod's spec, and how each is treated.
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

/// The fields of a container, and how each is treated.
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
                "not known to this program; check whether the agent needs it",
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
            "the chart runs no container but its own; check what it did",
        );
    }
    for container in spec["initContainers"].as_array().into_iter().flatten() {
        values.left(
            format!("init container {}", name(container)),
            "the chart runs none; check what it did: a rule of iptables needs no counterpart",
        );
    }
}

fn annotations(metadata: &Value, values: &mut Values) {
    let keys = metadata["annotations"].as_object().into_iter().flatten();
    for (key, _) in keys.filter(|(key, _)| !key.starts_with("checksum/")) {
        let why = if key.starts_with("prometheus.io/") {
            "it named the old port; with adminAddress set, podMonitor or podAnnotations name the new one"
        } else {
            "put it into podAnnotations if the agent's pods need it"
        };
        values.left(format!("annotation {key}"), why);
    }
}

/// Returns the name of an entry, for messages.
pub(super) fn name(of: &Value) -> &str {
    of["name"].as_str().unwrap_or("?")
}
