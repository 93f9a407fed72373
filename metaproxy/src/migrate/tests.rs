mod accounted;
mod manifests;

use super::*;
use proptest::prelude::*;
use rstest::rstest;

/// Flags that users may have set. Each must become a value or be listed with a reason.
const KUBE2IAM: &[&str] = &[
    "--base-role-arn=arn:aws:iam::123456789012:role/",
    "--auto-discover-base-arn",
    "--default-role=d",
    "--auto-discover-default-role",
    "--iam-role-key=k",
    "--iam-external-id=e",
    "--namespace-key=n",
    "--namespace-restrictions",
    "--namespace-restriction-format=regexp",
    "--iam-role-session-ttl=900s",
    "--use-regional-sts-endpoint",
    "--node=n",
    "--app-port=8181",
    "--metrics-port=9000",
    "--metadata-addr=169.254.169.254",
    "--host-ip=1.2.3.4",
    "--host-interface=docker0",
    "--iptables=true",
    "--log-format=json",
    "--log-level=warning",
    "--debug",
    "--api-server=x",
    "--api-token=x",
    "--insecure",
    "--verbose",
    "--log-flush-frequency=5s",
    "--kubeconfig=/x",
    "--iam-role-error-ttl=1m",
    "--backoff-max-elapsed-time=2s",
    "--backoff-max-interval=1s",
    "--cache-resync-period=30m",
    "--resolve-duplicate-cache-ips",
];

const KIAM: &[&str] = &[
    "--port=8181",
    "--allow-ip-query",
    "--allow-route-regexp=.*",
    "--iptables",
    "--iptables-remove",
    "--host=1.2.3.4",
    "--host-interface=cali+",
    "--role-base-arn=arn:aws:iam::123456789012:role/",
    "--role-base-arn-autodetect",
    "--assume-role-arn=arn:aws:iam::123456789012:role/server",
    "--session=s",
    "--session-duration=15m",
    "--session-refresh=5m",
    "--region=eu-west-1",
    "--sync=1m",
    "--fetchers=20",
    "--prefetch-buffer-size=1000",
    "--disable-strict-namespace-regexp",
    "--cert=/x",
    "--key=/x",
    "--ca=/x",
    "--prometheus-listen-addr=0.0.0.0:9620",
    "--level=debug",
    "--json-log",
    "--server-address=kiam-server:443",
    "--whitelist-route-regexp=.*",
    "--statsd=127.0.0.1:8125",
    "--statsd-prefix=kiam",
    "--statsd-interval=100ms",
    "--prometheus-sync-interval=5s",
    "--pprof-listen-addr=localhost:6060",
];

fn of_words(from: SourceSoftware, words: &[&str]) -> String {
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    values_for(from, &[Workload::of_words(&words)]).unwrap()
}

#[rstest]
#[case::kube2iam(SourceSoftware::Kube2iam, KUBE2IAM)]
#[case::kiam(SourceSoftware::Kiam, KIAM)]
fn every_flag_is_mentioned_and_none_is_unknown(#[case] from: SourceSoftware, #[case] flags: &[&str]) {
    let values = of_words(from, flags);
    for flag in flags {
        let name = flag.split('=').next().unwrap();
        assert!(values.contains(name), "{name} in\n{values}");
    }
    assert!(!values.contains("not known to this"), "{values}");
    let parsed: serde_json::Value = serde_yaml_ng::from_str(&values).unwrap();
    assert_eq!(parsed["mode"], "observe");
}

/// Flags of v2.0, v3.6 and v4.2 that have no row of their own in the guide.
#[test]
fn flags_of_every_version_of_kiam_are_known() {
    let flags = [
        "--server-address-refresh=10s",
        "--gateway-timeout-creation=1s",
        "--bind=0.0.0.0:443",
        "--timeout=1s",
        "--kubeconfig=/x",
        "--grpc-keepalive-time-ms=10s",
        "--grpc-keepalive-timeout-ms=2s",
        "--grpc-keepalive-time-duration=10s",
        "--grpc-keepalive-timeout-duration=2s",
        "--grpc-keepalive-permit-without-stream",
        "--grpc-max-connection-idle-duration=15m",
        "--grpc-max-connection-age-duration=15m",
        "--grpc-max-connection-age-grace-duration=15m",
    ];
    let values = of_words(SourceSoftware::Kiam, &flags);
    assert!(!values.contains("not known to this"), "{values}");
}

#[rstest]
#[case::kube2iam(KUBE2IAM)]
#[case::kiam(KIAM)]
fn the_guide_has_a_row_for_every_flag(#[case] flags: &[&str]) {
    let guide = include_str!("../../../deploy/docs/migration.md");
    for flag in flags {
        let name = flag.split('=').next().unwrap();
        let is_there = guide
            .lines()
            .any(|line| line.starts_with('|') && line.contains(&format!("{name}`")));
        assert!(is_there, "{name}");
    }
}

/// Annotations and paths that users of kube2iam and kiam rely on.
#[rstest]
#[case::role("iam.amazonaws.com/role")]
#[case::external_id("iam.amazonaws.com/external-id")]
#[case::session_name("iam.amazonaws.com/session-name")]
#[case::allowed_roles("iam.amazonaws.com/allowed-roles")]
#[case::permitted("iam.amazonaws.com/permitted")]
#[case::irsa("eks.amazonaws.com/role-arn")]
#[case::debug_store("/debug/store")]
#[case::healthz("/healthz")]
#[case::metrics("/metrics")]
fn the_guide_has_a_row_for_every_annotation_and_path(#[case] name: &str) {
    let guide = include_str!("../../../deploy/docs/migration.md");
    let cell = format!("`{name}`");
    // The last column is metaproxy's.
    let is_its_row = |line: &&str| {
        let theirs = line.trim_end_matches('|').rsplit_once('|');
        line.starts_with('|') && theirs.is_some_and(|(theirs, _)| theirs.contains(&cell))
    };
    let rows: Vec<&str> = guide.lines().filter(is_its_row).collect();
    assert_eq!(rows.len(), 1, "{name}: {rows:?}");
    let ours = rows[0].trim_end_matches('|').rsplit('|').next().unwrap();
    assert!(ours.trim().len() > 5, "{name}: {ours}");
}

#[test]
fn a_switch_that_kingpin_turns_off_is_off() {
    let values = of_words(
        SourceSoftware::Kiam,
        &[
            "--no-json-log",
            "--no-iptables-remove",
            "--no-role-base-arn-autodetect",
        ],
    );
    assert!(!values.contains("format:"), "{values}");
    assert!(
        values.contains("--iptables-remove=false: there is nothing"),
        "{values}"
    );
    assert!(
        values.contains("--json-log=false, --role-base-arn-autodetect=false: it is off"),
        "{values}"
    );
    assert!(!values.contains("not known to this"), "{values}");
}

/// kiam's default duration is too short, so every flag of the server leads to another duration. An agent's flags do
/// not.
#[rstest]
#[case("server --role-base-arn=arn:aws:iam::123456789012:role/", true)]
#[case("server --role-base-arn-autodetect", true)]
#[case("/server --sync=1m", true)]
#[case("--role-base-arn-autodetect", true)]
#[case("agent --iptables", false)]
#[case("/agent --iptables", false)]
fn a_kiam_server_without_a_duration_gets_a_valid_one(#[case] words: &str, #[case] is_set: bool) {
    let words: Vec<&str> = words.split(' ').collect();
    let values = of_words(SourceSoftware::Kiam, &words);
    assert_eq!(values.contains("duration: \"1h\""), is_set, "{values}");
}

#[test]
fn durations_are_limited_and_unknown_flags_are_listed() {
    let values = of_words(
        SourceSoftware::Kube2iam,
        &["--iam-role-session-ttl", "900s", "--frobnicate=7"],
    );
    assert!(values.contains("duration: \"52m\""), "{values}");
    assert!(
        values.contains("--frobnicate=7: not known to this program"),
        "{values}"
    );
    let values = of_words(SourceSoftware::Kube2iam, &["--iam-role-session-ttl=12h"]);
    assert!(values.contains("duration: \"1h\""), "{values}");
    let words = ["--iam-role-session-ttl=soon".to_owned()];
    let error = values_for(SourceSoftware::Kube2iam, &[Workload::of_words(&words)]).unwrap_err();
    assert!(
        error.to_string().starts_with("--iam-role-session-ttl=soon: "),
        "{error}"
    );
}

#[test]
fn the_nodes_role_is_never_kept_as_the_default_role() {
    let values = of_words(SourceSoftware::Kube2iam, &["--auto-discover-default-role=true"]);
    assert!(!values.contains("default:"), "{values}");
    assert!(values.contains("pods without an annotation got the"), "{values}");
}

#[test]
fn a_manifest_without_a_workload_is_an_error() {
    let error = workloads(
        SourceSoftware::Kiam,
        "x.yaml",
        "kind: DaemonSet\nmetadata: { name: other }\n",
    )
    .unwrap_err();
    assert!(error.to_string().contains("no workload of kiam found"), "{error}");
    let error = workloads(SourceSoftware::Kiam, "x.yaml", "a: [\n").unwrap_err();
    assert!(error.to_string().starts_with("x.yaml:"), "{error}");
}

/// Checks the flags of the projects' own documents and charts; each case names its source.
#[rstest]
#[case::kube2iam_readme(SourceSoftware::Kube2iam, "kube2iam-readme", include_str!("../../tests/migrate/kube2iam-readme.yaml"))]
#[case::kube2iam_openshift(SourceSoftware::Kube2iam, "kube2iam-openshift", include_str!("../../tests/migrate/kube2iam-openshift.yaml"))]
#[case::kube2iam_chart(SourceSoftware::Kube2iam, "kube2iam-chart", include_str!("../../tests/migrate/kube2iam-chart.yaml"))]
#[case::kube2iam_of_2026(SourceSoftware::Kube2iam, "kube2iam-0.15", include_str!("../../tests/migrate/kube2iam-0.15.yaml"))]
#[case::kiam_v2(SourceSoftware::Kiam, "kiam-v2", include_str!("../../tests/migrate/kiam-v2.yaml"))]
#[case::kiam_v3(SourceSoftware::Kiam, "kiam-v3", include_str!("../../tests/migrate/kiam-v3.yaml"))]
#[case::kiam_v4(SourceSoftware::Kiam, "kiam-v4", include_str!("../../tests/migrate/kiam-v4.yaml"))]
#[case::kiam_chart(SourceSoftware::Kiam, "kiam-chart", include_str!("../../tests/migrate/kiam-chart.yaml"))]
fn manifests_become_values(#[case] from: SourceSoftware, #[case] name: &str, #[case] manifest: &str) {
    let workloads = workloads(from, "manifest.yaml", manifest).unwrap();
    let values = values_for(from, &workloads).unwrap();
    insta::assert_snapshot!(name, values);
}

proptest! {
    /// A role that the agent refuses would fail only on the cluster.
    #[test]
    fn every_written_role_is_one_that_the_agent_accepts(
        server in any::<bool>(),
        base in "(arn:(aws|aws-cn):iam::(123456789012|1):role)?/?[a-z<>$/-]{0,8}",
        role in "(arn:aws:iam::123456789012:role/)?/?[a-z<>$/-]{0,8}",
    ) {
        let (from, words) = if server {
            (SourceSoftware::Kiam, vec!["server".to_owned(), format!("--role-base-arn={base}"), format!("--assume-role-arn={role}")])
        } else {
            (SourceSoftware::Kube2iam, vec![format!("--base-role-arn={base}"), format!("--default-role={role}")])
        };
        if let Ok(values) = values_for(from, &[Workload::of_words(&words)]) {
            let parsed: serde_json::Value = serde_yaml_ng::from_str(&values).unwrap();
            let text = |pointer| parsed.pointer(pointer).and_then(serde_json::Value::as_str);
            let base = text("/roles/baseArn").map(str::parse::<crate::roles::BaseArn>);
            let role = text("/roles/default").map(str::parse::<crate::roles::WrittenRole>);
            let through = text("/sessions/assumeRoleArn").map(str::parse::<crate::roles::RoleArn>);
            prop_assert!(!matches!(base, Some(Err(_))), "{base:?} in {values}");
            prop_assert!(!matches!(role, Some(Err(_))), "{role:?} in {values}");
            prop_assert!(!matches!(through, Some(Err(_))), "{through:?} in {values}");
        }
    }

    #[test]
    fn any_flags_give_valid_yaml_or_an_error(words in prop::collection::vec("[a-z-]{1,8}=[ -~\n]{0,24}|[ -~\n]{0,24}", 0..6)) {
        let words: Vec<String> = words.into_iter().map(|word| format!("--{word}")).collect();
        for from in [SourceSoftware::Kube2iam, SourceSoftware::Kiam] {
            if let Ok(values) = values_for(from, &[Workload::of_words(&words)]) {
                let parsed: serde_json::Value = serde_yaml_ng::from_str(&values).unwrap();
                prop_assert_eq!(&parsed["mode"], "observe");
            }
        }
    }
}
