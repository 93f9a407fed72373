//! Maps kube2iam's flags (cmd/main.go of its last releases, and of older ones that are still in use).

use std::time::Duration;

use super::MigrateError;
use super::manifest::Workload;
use super::named_roles;
use super::values::Values;
use super::versions::{PASSED_ALL, Version};
use super::words::{Flag, Grammar};

pub const GRAMMAR: Grammar = Grammar {
    program: "kube2iam",
    parts: &[],
    switches: &[
        "auto-discover-base-arn",
        "auto-discover-default-role",
        "debug",
        "insecure",
        "iptables",
        "namespace-restrictions",
        "resolve-duplicate-cache-ips",
        "use-regional-sts-endpoint",
        "verbose",
        "version",
    ],
    single: &[
        "base-role-arn",
        "default-role",
        "iam-external-id",
        "iam-role-key",
        "iam-role-session-ttl",
        "metadata-addr",
        "namespace-key",
        "namespace-restriction-format",
        "namespace-restrictions",
    ],
    is_kingpin: false,
};

/// The note on the metrics port. The old agent holds its port as long as both run.
pub(super) const METRICS: &str = "/metrics is at adminAddress, which is off unless it is set, such as 0.0.0.0:16925 for Prometheus to \
                                  reach: from elsewhere than the node itself only /metrics, /healthz and \
                                  /readyz are answered. podMonitor.enabled sets both up with the Prometheus Operator. The old port is free when the old daemon is gone. The metrics' names are \
                                  in deploy/docs/migration.md#metrics-by-their-old-names";

/// The version that first read globs in a namespace's list (jtblin/kube2iam#104).
const GLOBS: Version = Version(0, 9);

pub fn migrate(flags: &[Flag], workloads: &[Workload], values: &mut Values) -> Result<(), MigrateError> {
    values.set(
        "",
        "namespacePolicy",
        "off",
        "As kube2iam without --namespace-restrictions: every user who may create pods may have any role that trusts the node's. \
         Annotate the namespaces, and then set `required`",
    );
    for flag in flags {
        one(flag, values)?;
    }
    values.change(PASSED_ALL.0, PASSED_ALL.1.replace("{of}", "kube2iam"));
    let is_restricted = flags
        .iter()
        .any(|flag| flag.name == "namespace-restrictions" && flag.is_on());
    let oldest = workloads.iter().filter_map(Workload::version).min();
    if let Some(oldest) = oldest.filter(|oldest| is_restricted && *oldest < GLOBS) {
        values.change(
            "namespaces",
            format!(
                "kube2iam {oldest} compared the entries of iam.amazonaws.com/allowed-roles as they are written. Here `*` and \
                 `?` in them stand for any text, so an entry may allow more roles than before: check your namespaces"
            ),
        );
    }
    Ok(())
}

fn one(flag: &Flag, values: &mut Values) -> Result<(), MigrateError> {
    match flag.name.as_str() {
        "base-role-arn" => values.keep_role("roles", "baseArn", flag, named_roles::base(flag)?),
        "auto-discover-base-arn" => values.same(flag.shown(), "the account of the node's own role is found where roles.baseArn is empty"),
        "default-role" => values.keep_role("roles", "default", flag, named_roles::role(flag)?),
        "auto-discover-default-role" if flag.is_on() => values.gone(
            flag,
            "pods without an annotation got the node's own role, which metaproxy keeps from them; roles.default can name \
             another role for them",
        ),
        "iam-role-key" => values.keep("roles", "roleAnnotation", flag)?,
        "iam-external-id" => values.keep("roles", "externalIdAnnotation", flag)?,
        "namespace-key" => values.keep("roles", "allowedRolesAnnotation", flag)?,
        "namespace-restrictions" if flag.is_on() => values.set(
            "",
            "namespacePolicy",
            "required",
            "--namespace-restrictions. The default role is exempt, as in kube2iam",
        ),
        // kube2iam reads every value but `regexp` as globs (mappings/mapper.go).
        "namespace-restriction-format" => {
            let is_regexp = flag.known()?.eq_ignore_ascii_case("regexp");
            let style = if is_regexp { "regexp" } else { "glob" };
            values.set("roles", "allowedRolesStyle", style, flag.shown());
        }
        "iam-role-session-ttl" => session(flag, values)?,
        "iam-role-error-ttl" => values.gone(
            flag,
            "a denial of STS is remembered for 30 s, and other failures are retried with backoff",
        ),
        "use-regional-sts-endpoint" => values.same(flag.shown(), "the regional STS is used"),
        "node" => values.same(flag.shown(), "the chart tells the agent its node, and it watches that node's pods only"),
        "app-port" => values.gone(
            flag,
            "there is no fixed port: a free one is taken. interception.listenPort fixes one, if a firewall needs that",
        ),
        "metrics-port" => values.gone(flag, METRICS),
        "metadata-addr" => values.set("metadata", "endpoint", format!("http://{}", flag.known()?), "--metadata-addr"),
        "host-ip" => values.gone(flag, "no rule names an address; interception.listenAddresses does, if the node has several"),
        "host-interface" => values.gone(flag, "connections are intercepted where they are made, whatever the interface is called"),
        "iptables" => values.gone(
            flag,
            "metaproxy makes no rules. kube2iam leaves its own behind when it ends: `metaproxy doctor` shows them, and \
             `metaproxy doctor --fix-leftovers` removes them",
        ),
        "log-format" => {
            let format = if flag.known()? == "json" { "json" } else { "text" };
            values.set("log", "format", format, "--log-format");
        }
        "log-level" => log_level(flag, values),
        "verbose" if flag.is_on() => values.set("log", "level", "debug", "--verbose"),
        "debug" if flag.is_on() => values.gone(flag, "/debug/store is `metaproxy explain --all` and `metaproxy status`"),
        "api-server" | "api-token" | "kubeconfig" => values.gone(
            flag,
            "the agent uses its own service account; `kubeconfig` names another API server, with extraVolumes",
        ),
        "insecure" if flag.is_on() => values.gone(flag, "the API server's certificate is always verified; a kubeconfig may name its CA"),
        "log-flush-frequency" => values.gone(flag, "each line is written at once"),
        "backoff-max-elapsed-time" | "backoff-max-interval" => values.gone(
            flag,
            "a request of a pod that is not known yet waits for 800 ms at most, as SDKs give up after a second",
        ),
        "cache-resync-period" | "cache-sync-attempts" => values.gone(flag, "pods are watched, and a watch that fails is started again"),
        "resolve-duplicate-cache-ips" => values.gone(flag, "pods are identified by their cgroups, not by their addresses"),
        _ if is_off_switch(flag) => values.same(flag.shown(), "it is off"),
        _ => values.unknown(flag),
    }
    Ok(())
}

pub(super) fn is_off_switch(flag: &Flag) -> bool {
    matches!(flag.value.to_ascii_lowercase().as_str(), "false" | "f" | "0")
}

/// Maps the duration of sessions. STS accepts 15m to 1h if one role assumes another (role chaining), and sessions of
/// 52m and more work with every SDK.
pub(super) fn session(flag: &Flag, values: &mut Values) -> Result<(), MigrateError> {
    let (least, most) = (Duration::from_secs(52 * 60), Duration::from_secs(3600));
    let asked = duration(flag)?;
    let why = if (least..=most).contains(&asked) {
        format!("--{}", flag.name)
    } else {
        format!(
            "--{}={}: STS gives no more than 1h if the node's role assumes another, and below 52m botocore assumes that the session \
             ends later than it does",
            flag.name, flag.value
        )
    };
    let kept = asked.clamp(least, most);
    let text = humantime::format_duration(kept).to_string();
    values.set("sessions", "duration", text, why);
    Ok(())
}

/// Parses a duration in Go's form: `15m0s`, `900s`, `1h30m`.
fn duration(flag: &Flag) -> Result<Duration, MigrateError> {
    humantime::parse_duration(flag.known()?).map_err(|error| MigrateError::Value {
        flag: flag.shown(),
        problem: error.to_string(),
    })
}

pub(super) fn log_level(flag: &Flag, values: &mut Values) {
    let level = match flag.value.as_str() {
        "panic" | "fatal" | "error" => "error",
        "warn" | "warning" => "warn",
        "debug" => "debug",
        "trace" => "trace",
        _ => "info",
    };
    values.set("log", "level", level, flag.shown());
}
