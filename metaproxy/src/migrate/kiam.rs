//! Maps the flags of kiam's agent and server (cmd/kiam of versions 2 to 4).

use std::collections::BTreeSet;

use super::MigrateError;
use super::kube2iam::{METRICS, is_off_switch, log_level, session};
use super::manifest::Workload;
use super::named_roles;
use super::routes::{Allowed, allowed};
use super::values::Values;
use super::versions::{PASSED_ALL, Version};
use super::words::{Flag, Grammar};

pub const GRAMMAR: Grammar = Grammar {
    program: "kiam",
    parts: &["agent", "server"],
    switches: &[
        "allow-ip-query",
        "disable-strict-namespace-regexp",
        "grpc-keepalive-permit-without-stream",
        "iptables",
        "iptables-remove",
        "json-log",
        "role-base-arn-autodetect",
    ],
    single: &[
        "allow-route-regexp",
        "assume-role-arn",
        "disable-strict-namespace-regexp",
        "region",
        "role-base-arn",
        "session-duration",
        "whitelist-route-regexp",
    ],
    is_kingpin: true,
};

/// The version that first checked namespaces (`v2.2-rc1`, "Namespace restrictions", uswitch/kiam#2).
const ASKED: Version = Version(2, 2);

/// The version that first passed on no other metadata by default (CHANGELOG, v3.0).
const CLOSED: Version = Version(3, 0);

/// The version that first compared `permitted` with the whole ARN (docs/UPGRADING.md, v3 to v4).
const ANCHORED: Version = Version(4, 0);

pub fn migrate(flags: &[Flag], workloads: &[Workload], values: &mut Values) -> Result<(), MigrateError> {
    values.set(
        "",
        "namespacePolicy",
        "required",
        "As kiam has it: a namespace's annotation must permit a role",
    );
    by_version(workloads, values);
    by_parts(workloads, values);
    if let [agent] = workloads
        && agent.is_part("agent")
        && !agent.template.is_null()
    {
        values.change(
            "the server's flags",
            "only the agent's manifest was given. The server's has --role-base-arn, --assume-role-arn and the rules for \
             namespaces: give both",
        );
    }
    let base = base(flags);
    for flag in flags {
        one(flag, base, values)?;
    }
    if !flags.iter().any(|flag| flag.name == "session-duration") && is_of_server(flags, workloads) {
        values.set(
            "sessions",
            "duration",
            "1h",
            "kiam's default of 15m is too short for some SDKs",
        );
    }
    Ok(())
}

/// Returns the version of the part that decides about namespaces, which is the server's. Of several servers the
/// newest counts, because with it no rule becomes looser. `None` if a tag has no version, or no server is given.
fn deciding(workloads: &[Workload]) -> Option<Version> {
    let is_known = workloads.iter().any(|workload| workload.part.is_some());
    let deciding = workloads
        .iter()
        .filter(|workload| !is_known || workload.is_part("server"));
    let versions: Option<Vec<Version>> = deciding.map(Workload::version).collect();
    versions?.into_iter().max()
}

/// Maps the differences between versions.
fn by_version(workloads: &[Workload], values: &mut Values) {
    let versions: Option<Vec<Version>> = workloads.iter().map(Workload::version).collect();
    let is_before = |version| {
        versions
            .as_ref()
            .is_some_and(|known| known.iter().all(|one| *one < version))
    };
    if !is_before(CLOSED) {
        values.set(
            "metadata",
            "passThrough",
            "none",
            "As kiam from 3.0, which passed through only what --allow-route-regexp allows; `minimal` lets SDKs find their region, \
             and `default` passes through what is no secret",
        );
    } else {
        values.change(PASSED_ALL.0, PASSED_ALL.1.replace("{of}", "kiam"));
    }
    let Some(version) = deciding(workloads) else {
        values.change(
            "namespaces",
            "no tag of the server's image tells the version, so kiam 4 was assumed: iam.amazonaws.com/permitted must match a \
             whole role. Before 4.0 a match anywhere was enough (roles.permittedMatch: search)",
        );
        return;
    };
    if version < ASKED {
        values.set(
            "",
            "namespacePolicy",
            "required",
            format!(
                "kiam {version} had no rule for namespaces: any pod could have any role. Here roles are refused until each \
                 namespace has iam.amazonaws.com/permitted; \"off\" reads no annotation of namespaces, as before"
            ),
        );
    } else if version < ANCHORED {
        values.set(
            "roles",
            "permittedMatch",
            "search",
            "kiam before 4.0 accepted a match anywhere in a role; set `anchored` when your annotations are ready (`metaproxy explain` \
             shows which are not)",
        );
        values.change(
            "namespaces",
            format!(
                "kiam {version} looked for iam.amazonaws.com/permitted in the role as the pod names it. Here it is looked for in \
                 the ARN too, so a pattern that is a part of every ARN (iam, role, the account) permits every role: check \
                 your namespaces"
            ),
        );
    }
}

/// Says that the parts have different versions.
fn by_parts(workloads: &[Workload], values: &mut Values) {
    let known: BTreeSet<Version> = workloads.iter().filter_map(Workload::version).collect();
    if let (Some(oldest), Some(newest)) = (known.first(), known.last())
        && oldest < newest
    {
        values.change(
            "versions",
            format!(
                "the parts of kiam are of different versions, from {oldest} to {newest}. Its server decides about namespaces, so \
                 the server's version counts there, and of several the newest"
            ),
        );
    }
}

/// Reports whether the server's flags are given, because those of an agent alone say nothing about sessions.
fn is_of_server(flags: &[Flag], workloads: &[Workload]) -> bool {
    let mut names = flags.iter().map(|flag| flag.name.as_str());
    names.any(|name| matches!(name, "role-base-arn" | "role-base-arn-autodetect"))
        || workloads.iter().any(|workload| workload.is_part("server"))
}

/// Returns kiam's prefix of role names, if its flags have one. The last of several counts. `None` if kiam finds the
/// prefix out itself, because kiam prefers that to the flag.
fn base(flags: &[Flag]) -> Option<&str> {
    let finds_out = |flag: &Flag| flag.name == "role-base-arn-autodetect" && flag.is_on();
    let named = flags.iter().rfind(|flag| flag.name == "role-base-arn");
    let known = named.filter(|flag| flag.missing.is_none() && !flag.value.is_empty());
    known
        .filter(|_| !flags.iter().any(finds_out))
        .map(|flag| flag.value.as_str())
}

fn one(flag: &Flag, base: Option<&str>, values: &mut Values) -> Result<(), MigrateError> {
    match flag.name.as_str() {
        "role-base-arn" => values.keep_role("roles", "baseArn", flag, named_roles::base_of_kiam(flag)?),
        "role-base-arn-autodetect" if flag.is_on() => {
            values.same(flag.shown(), "the account of the node's own role is found where roles.baseArn is empty");
        }
        "assume-role-arn" => {
            let role = named_roles::of_server(flag, base)?;
            values.keep_role("sessions", "assumeRoleArn", flag, role);
        }
        "session-duration" => session(flag, values)?,
        "session" => values.gone(
            flag,
            "a session has the name of its pod (NAMESPACE.POD), which CloudTrail shows; iam.amazonaws.com/session-name on a pod \
             still sets another",
        ),
        "session-refresh" => values.gone(flag, "a session is renewed at half of its life"),
        "region" => {
            let region = Some(flag.known()?).filter(|region| !region.is_empty());
            values.keep_role("sessions", "region", flag, region);
        }
        "sync" | "fetchers" | "prefetch-buffer-size" => {
            values.gone(flag, "each agent fetches the sessions of its node's pods as they appear");
        }
        "disable-strict-namespace-regexp" if flag.is_on() => {
            values.set("roles", "permittedMatch", "search", "--disable-strict-namespace-regexp");
        }
        "allow-route-regexp" | "whitelist-route-regexp" => routes(flag, values)?,
        "allow-ip-query" if flag.is_on() => values.gone(
            flag,
            "a pod is identified by its cgroup, so no client can ask for another pod by its address",
        ),
        "port" => values.gone(flag, "there is no fixed port: a free one is taken"),
        "iptables" => values.gone(
            flag,
            "metaproxy makes no rules. `metaproxy doctor` shows those that kiam has left, and `metaproxy doctor --fix-leftovers` \
             removes them",
        ),
        "iptables-remove" => values.gone(
            flag,
            "there is nothing to remove. While the agent is away, the guard keeps pods from the node's credentials \
             (guard.placement); `helm uninstall` removes the guard too",
        ),
        "host" => values.gone(flag, "no rule names an address; interception.listenAddresses does, if the node has several"),
        "host-interface" => {
            values.gone(flag, "connections are intercepted where they are made, whatever the interface is called");
        }
        "prometheus-listen-addr" => values.gone(flag, METRICS),
        "statsd" | "statsd-prefix" | "statsd-interval" => values.gone(
            flag,
            "metrics are served to Prometheus only, at /metrics of adminAddress; an exporter can forward them",
        ),
        "pprof-listen-addr" => values.gone(flag, "no profiler is served"),
        "prometheus-sync-interval" => values.gone(flag, "metrics are computed when they are read"),
        "log-level" | "level" => log_level(flag, values),
        "json-log" if flag.is_on() => values.set("log", "format", "json", "--json-log"),
        "cert" | "key" | "ca" | "server-address" | "server-address-refresh" | "bind" | "timeout"
        | "gateway-timeout-creation" | "grpc-keepalive-time-duration" | "grpc-keepalive-timeout-duration"
        | "grpc-keepalive-time-ms" | "grpc-keepalive-timeout-ms"
        | "grpc-keepalive-permit-without-stream" | "grpc-max-connection-idle-duration" | "grpc-max-connection-age-duration"
        | "grpc-max-connection-age-grace-duration" => values.gone(
            flag,
            "there is no server, and so no certificates: each agent calls STS itself. It assumes roles with the role of its node, or \
             with sessions.assumeRoleArn, as the server did with the role of its nodes",
        ),
        "kubeconfig" => values.gone(flag, "the agent uses its own service account; another is given by `kubeconfig`, with extraVolumes"),
        _ if is_off_switch(flag) => values.same(flag.shown(), "it is off"),
        _ => values.unknown(flag),
    }
    Ok(())
}

/// Maps kiam's route pattern, which matches anywhere in a path. `metadata.allowPaths` matches whole paths.
fn routes(flag: &Flag, values: &mut Values) -> Result<(), MigrateError> {
    let found = allowed(flag.known()?).map_err(|problem| MigrateError::Value {
        flag: flag.shown(),
        problem,
    })?;
    let mut patterns = Vec::new();
    let mut why = format!(
        "{}, rewritten to match the same paths; credentials and user-data are never passed through",
        flag.shown()
    );
    for (part, one) in found {
        match one {
            Allowed::Pattern(pattern) => patterns.push(pattern),
            Allowed::Everything(pattern) => {
                why = format!(
                    "{why}. `{pattern}` passes all other metadata of the node through: name the paths that pods need instead"
                );
                patterns.push(pattern);
            }
            Allowed::Nothing(reason) => {
                let part = Flag {
                    value: part,
                    ..flag.clone()
                };
                values.gone(&part, reason);
            }
        }
    }
    if !patterns.is_empty() {
        values.set("metadata", "allowPaths", patterns, why);
    }
    Ok(())
}
