//! Tests of the Helm chart, of the files that are generated from it, and of the examples. `cargo xtask setup`
//! installs helm, kubectl and the validator.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test panics where it fails"
)]

mod policy;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The minor versions of Kubernetes that manifests are validated for, from the oldest required version to the newest
/// one that the validator has schemas of.
const VERSIONS: std::ops::RangeInclusive<u32> = 27..=37;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Returns the path of a program that `cargo xtask setup` installs, or `None` if it is not installed. Under CI a
/// missing program is a failure.
fn tool(path: &str) -> Option<PathBuf> {
    let path = root().join("target").join(path);
    if path.exists() {
        return Some(path);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "{} is missing: run `cargo xtask setup`",
        path.display()
    );
    eprintln!("skipped: {} is missing (cargo xtask setup)", path.display());
    None
}

fn yaml_files(dir: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join(dir))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

fn helm(helm: &Path, words: &[&str]) -> Output {
    Command::new(helm)
        .args(words)
        .current_dir(root())
        .output()
        .unwrap()
}

const CHART: &str = "deploy/helm/metaproxy";

fn template(program: &Path, version: &str, flags: &[&str]) -> Result<String, String> {
    let mut words = vec![
        "template",
        "metaproxy",
        CHART,
        "--namespace",
        "kube-system",
        "--kube-version",
        version,
    ];
    words.extend(flags);
    let output = helm(program, &words);
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// Lists the files of values: those of the tests, and the examples except `pods.yaml`, which contains no values.
fn value_sets() -> Vec<PathBuf> {
    let mut files = yaml_files("deploy/helm/tests/values");
    assert!(files.len() >= 6);
    files.extend(
        yaml_files("deploy/examples")
            .into_iter()
            .filter(|path| !path.ends_with("pods.yaml")),
    );
    files
}

#[test]
fn the_chart_and_every_example_pass_helms_lint() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for values in value_sets() {
        let output = helm(
            &program,
            &["lint", CHART, "--strict", "--values", values.to_str().unwrap()],
        );
        assert!(output.status.success(), "{}: {output:?}", values.display());
    }
}

#[test]
fn golden_files_and_the_kustomize_base_are_what_the_chart_makes() {
    if tool("kubernetes/helm").is_none() {
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["manifests", "--check"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn kubectl_builds_the_kustomize_base() {
    let Some(kubectl) = tool("kubernetes/kubectl") else {
        return;
    };
    let output = Command::new(kubectl)
        .arg("kustomize")
        .arg(root().join("deploy/kustomize/base"))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for kind in ["DaemonSet", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"] {
        assert!(text.contains(&format!("\nkind: {kind}\n")), "{kind} in {text}");
    }
}

#[test]
fn manifests_are_valid_for_every_version_of_kubernetes() {
    let (Some(program), Some(python)) = (tool("kubernetes/helm"), tool("venv/bin/python3")) else {
        return;
    };
    let mut cases = Vec::new();
    for values in value_sets() {
        for minor in VERSIONS {
            let version = format!("1.{minor}");
            let text = template(&program, &version, &["--values", values.to_str().unwrap()]).unwrap();
            cases.push(serde_json::json!({ "version": version, "name": values, "text": text }));
        }
    }
    let mut child = Command::new(python)
        .arg(root().join("xtask/tests/validate.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&serde_json::to_vec(&cases).unwrap()).unwrap();
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let checked: usize = String::from_utf8(output.stdout).unwrap().trim().parse().unwrap();
    assert!(
        checked >= 2 * cases.len(),
        "{checked} documents of {} renderings",
        cases.len()
    );
}

#[test]
fn values_that_make_no_sense_are_refused_and_named() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (wrong, key) in [
        ("namespacePolicy=maybe", "namespacePolicy"),
        ("namespacepolicy=off", "namespacepolicy"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("image.digest=sha256:12", "digest"),
        ("roles.baseArn=arn:aws:iam::12:role/", "baseArn"),
        ("roles.roleAnnotation=a/b/c", "roleAnnotation"),
        ("roles.allowedRolesStyle=regex", "allowedRolesStyle"),
        ("webIdentity.audiences[0]=it's", "audiences"),
        ("webIdentity.audiences=", "audiences"),
        ("sessions.duration=soon", "duration"),
        ("sessions.tags=maybe", "tags"),
        ("sessions.clusterArn=blue", "clusterArn"),
        ("metadata.maxConnectionsPerPod=0", "maxConnectionsPerPod"),
        ("interception.listenPort=70000", "listenPort"),
        ("interception.listenPort=http", "listenPort"),
        ("adminAddress=9808", "adminAddress"),
        ("adminAddress=0.0.0.0:99999", "adminAddress"),
        ("startupTaint=a b", "startupTaint"),
        ("startupTaintPolicy=perhaps", "startupTaintPolicy"),
        ("maxUnavailable=0", "maxUnavailable"),
        ("terminationGracePeriodSeconds=1", "terminationGracePeriodSeconds"),
        ("runtimeDir=run", "runtimeDir"),
        ("runtimeDir=/run", "runtimeDir"),
        ("adminAddress=null", "adminAddress"),
        ("sessions.tags=null", "tags"),
        ("hardened=yes please", "hardened"),
        ("guard.placement=pod", "placement"),
    ] {
        let error = template(
            &program,
            "1.30",
            &["--set", "namespacePolicy=off", "--set", wrong],
        )
        .unwrap_err();
        assert!(
            error.contains("values don't meet the specifications") && error.contains(key),
            "{wrong}: {error}"
        );
    }
}

#[test]
fn values_that_do_not_go_together_are_refused_with_a_sentence() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (values, sentence) in [
        ("image.tag=v1", "namespacePolicy must be chosen: `required`"),
        (
            "namespacePolicy=off,kubeconfig=/k,webIdentity.enabled=true",
            "with kubeconfig the agent is another user than its service account",
        ),
        (
            "namespacePolicy=off,podMonitor.enabled=true,adminAddress=false",
            "podMonitor.enabled needs an adminAddress that Prometheus can reach",
        ),
        (
            "namespacePolicy=off,podMonitor.enabled=true,adminAddress=127.0.0.1:16925",
            "podMonitor.enabled needs an adminAddress that Prometheus can reach",
        ),
        (
            "namespacePolicy=off,guard.sidecar=false",
            "guard.sidecar is guard.placement now",
        ),
        (
            "namespacePolicy=off,sessions.tags=eks,sessions.clusterName=blue",
            "sessions.tags=eks needs sessions.clusterArn",
        ),
        (
            "namespacePolicy=off,manifests=/pods,webIdentity.enabled=true",
            "manifests replaces the API server",
        ),
    ] {
        let error = template(&program, "1.30", &["--set", values]).unwrap_err();
        assert!(error.contains(sentence), "{values}: {error}");
    }
}

#[test]
fn alerts_lead_to_the_runbook_by_the_base_url_or_by_its_path() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let rules = fs::read_to_string(root().join(CHART).join("alerts.yaml")).unwrap();
    let alerts = rules.matches("- alert: ").count();
    assert!(alerts > 10, "{alerts}");
    for (flags, prefix) in [
        ("", ""),
        (
            ",prometheusRule.runbookBaseUrl=https://git.example.com/a/",
            "https://git.example.com/a/",
        ),
    ] {
        let flags = format!("namespacePolicy=off,prometheusRule.enabled=true{flags}");
        let text = template(&program, "1.30", &["--set", &flags]).unwrap();
        let runbook = format!("runbook_url: {prefix}deploy/docs/operations.md#");
        assert_eq!(text.matches(&runbook).count(), alerts, "{flags}: {text}");
    }
    let text = template(&program, "1.30", &["--set", "namespacePolicy=off"]).unwrap();
    assert!(!text.contains("PrometheusRule"), "{text}");
}

/// `deploy/docs/iam.md` documents this under "Session tags".
#[test]
fn the_tags_of_eks_pod_identity_are_given_with_the_clusters_arn() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let arn = "arn:aws:eks:eu-west-1:123456789012:cluster/blue";
    let values = format!("namespacePolicy=off,sessions.tags=eks,sessions.clusterArn={arn}");
    let text = template(&program, "1.30", &["--set", &values]).unwrap();
    for argument in ["--session-tags=eks", &format!("--cluster-arn={arn}")] {
        assert!(
            text.contains(&format!("- \"{argument}\"")),
            "{argument} in {text}"
        );
    }
}

/// Each version gets the safest update strategy that it supports.
#[test]
fn updates_surge_where_the_cluster_can_and_no_port_is_fixed() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (version, flags, surges) in [
        ("v1.21.14", "", false),
        ("v1.22.0-rc.0", "", true),
        ("v1.29.3-eks-abc1234", "", true),
        ("v1.27.4+k3s1", "", true),
        ("v1.30.0", ",interception.listenPort=8181", false),
    ] {
        let text = template(
            &program,
            version,
            &["--set", &format!("namespacePolicy=off{flags}")],
        )
        .unwrap();
        let agent = document(&text, "DaemonSet", "metaproxy");
        assert_eq!(agent.contains("maxSurge: 1"), surges, "{version}{flags}");
        assert_eq!(agent.contains("maxUnavailable: 0"), surges, "{version}{flags}");
    }
}

/// Returns one of the objects that the chart generates.
fn document<'a>(text: &'a str, kind: &str, name: &str) -> &'a str {
    let (kind, name) = (
        format!("\nkind: {kind}\n"),
        format!("\nmetadata:\n  name: {name}\n"),
    );
    let is_it = |document: &&str| document.contains(&kind) && document.contains(&name);
    let found = text.split("\n---\n").find(is_it);
    found.unwrap_or_else(|| panic!("no{kind}of{name}in {text}"))
}

/// A guard in the agent's pod would end with the pod: when it is replaced or deleted, or its sandbox is killed.
#[test]
fn the_guard_has_pods_of_its_own_that_always_surge_unless_it_is_told_otherwise() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let made = |version: &str, flags: &str| {
        let flags = format!("namespacePolicy=off{flags}");
        template(&program, version, &["--set", &flags]).unwrap()
    };
    for (version, flags, surges) in [
        ("v1.21.14", "", false),
        ("v1.22.0", "", true),
        ("v1.33.0", ",interception.listenPort=8181", true),
        ("v1.33.0", ",mode=observe", true),
    ] {
        let text = made(version, flags);
        let guard = document(&text, "DaemonSet", "metaproxy-guard");
        assert_eq!(guard.contains("maxSurge: 1"), surges, "{version}{flags}");
        for line in [
            "- guard\n",
            "automountServiceAccountToken: false",
            "priorityClassName: system-node-critical",
            "hostNetwork: true",
            "[/metaproxy, probe, ready, ",
            "[/metaproxy, probe, live, ",
        ] {
            assert!(guard.contains(line), "{line} in {guard}");
        }
        let selector = "matchLabels:\n      app.kubernetes.io/name: metaproxy-guard\n";
        assert!(guard.contains(selector), "the agent's selector matches others");
        let agent = document(&text, "DaemonSet", "metaproxy");
        assert!(!agent.contains("name: guard"), "{agent}");
    }
    for (version, flags, in_agent) in [
        ("v1.33.0", ",guard.placement=sidecar", "initContainers:"),
        ("v1.28.0", ",guard.placement=sidecar", "- name: guard\n"),
    ] {
        let text = made(version, flags);
        assert!(!text.contains("name: metaproxy-guard"), "{flags}");
        assert!(
            document(&text, "DaemonSet", "metaproxy").contains(in_agent),
            "{flags}"
        );
    }
    for flags in [",guard.placement=none", ",guard.kind=off"] {
        let text = made("v1.33.0", flags);
        assert!(
            !text.contains("- guard\n") && !text.contains("metaproxy-guard"),
            "{flags}"
        );
    }
    let long = [
        "--set",
        "namespacePolicy=off,fullnameOverride=a23456789-123456789-123456789-123456789-123456789-123456789-123",
    ];
    let text = template(&program, "v1.33.0", &long).unwrap();
    let name = "name: a23456789-123456789-123456789-123456789-123456789-1234567-guard\n";
    assert!(text.contains(name), "{text}");
}

/// Helm prints the notes after an installation.
#[test]
fn the_notes_promise_what_the_guards_placement_keeps() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let notes = |flags: &str| {
        let values = format!("namespacePolicy=off{flags}");
        let words = [
            "install",
            "metaproxy",
            CHART,
            "--dry-run=client",
            "--set",
            &values,
        ];
        let output = helm(&program, &words);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, notes) = text.split_once("\nNOTES:\n").unwrap();
        notes.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let fixed = ",interception.listenPort=18181";
    for (flags, promise) in [
        (String::new(), "by the guard, in pods of its own, once an agent"),
        (
            fixed.to_owned(),
            "by the guard, in pods of its own, once an agent",
        ),
        (
            ",guard.placement=sidecar".to_owned(),
            "but not while the agent's pod itself is away, for example if it is deleted or its sandbox killed",
        ),
        (
            format!("{fixed},guard.placement=sidecar"),
            "but not while the agent's pod itself is away, for example if it is replaced, deleted or",
        ),
        (
            ",guard.placement=none".to_owned(),
            "reach the node's metadata service, as without metaproxy",
        ),
    ] {
        let notes = notes(&flags);
        assert!(notes.contains(promise), "{flags}: {notes}");
        assert!(
            notes.contains("`helm uninstall` ends both. From then on pods reach the node's"),
            "{notes}"
        );
        let rollout = "rollout status daemonset/metaproxy-guard";
        assert_eq!(
            notes.contains(rollout),
            promise.contains("pods of its own"),
            "{notes}"
        );
    }
}

/// Each value has its effect without the other. Metrics that are scraped are also switched on.
#[test]
fn one_value_switches_metrics_on_and_another_has_them_scraped() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (flags, address, port) in [
        ("", "off", None),
        (",adminAddress=10.0.0.1:8000", "10.0.0.1:8000", None),
        (",podMonitor.enabled=true", "0.0.0.0:16925", Some("16925")),
        (
            ",podMonitor.enabled=true,adminAddress=[::]:8000",
            "[::]:8000",
            Some("8000"),
        ),
    ] {
        let words = ["--set", &format!("namespacePolicy=off{flags}")];
        let text = template(&program, "v1.33.0", &words).unwrap();
        let lines = format!("- name: METAPROXY_ADMIN_ADDRESS\n              value: \"{address}\"\n");
        assert!(text.contains(&lines), "{flags}: {text}");
        assert_eq!(text.contains("kind: PodMonitor"), port.is_some(), "{flags}");
        if let Some(port) = port {
            assert!(
                text.contains(&format!("replacement: $1:{port}\n")),
                "{flags}: {text}"
            );
            assert!(
                text.contains(&format!("replacement: '[$1]:{port}'\n")),
                "{flags}: {text}"
            );
        }
    }
}

/// Names of values stand in backticks or after `--set`. A value that is renamed must be renamed in documents too.
#[test]
fn values_that_documents_name_are_the_charts() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let values: serde_json::Value =
        serde_yaml_ng::from_str(&read("deploy/helm/metaproxy/values.yaml")).unwrap();
    let named =
        regex::Regex::new(r"(?:`|--set(?:-json)? |,)([a-z][A-Za-z]+(?:\.[a-z][A-Za-z]+)*)(?:[`=:]| )")
            .unwrap();
    let mut found = 0;
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let guides = fs::read_dir(root().join("deploy/docs")).unwrap().map(name);
    let guides = guides.map(|name| format!("deploy/docs/{name}"));
    let others = [
        "README.md",
        "deploy/README.md",
        "deploy/helm/metaproxy/templates/NOTES.txt",
    ];
    let documents: Vec<String> = guides.chain(others.map(str::to_owned)).collect();
    assert!(documents.len() > 10, "{documents:?}");
    for path in documents {
        for name in named.captures_iter(&read(&path)) {
            // This is a field of every object in Kubernetes, not a value.
            if &name[1] == "metadata.uid" {
                continue;
            }
            let mut parts = name[1].split('.');
            // Other words are not names of values: they do not begin with a value of the chart.
            let Some(mut value) = parts.next().and_then(|first| values.get(first)) else {
                continue;
            };
            for part in parts {
                value = value
                    .get(part)
                    .unwrap_or_else(|| panic!("{path} names {}, which the chart does not have", &name[1]));
            }
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
}

/// A policy allows nothing if it is not JSON, or if it compares a tag that no session has.
#[test]
fn policies_of_documents_are_json_and_compare_tags_that_sessions_have() {
    let text = fs::read_to_string(root().join("deploy/docs/iam.md")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let policies: Vec<serde_json::Value> = lines
        .split(|line| !line.starts_with("    "))
        .filter(|block| block.first() == Some(&"    {"))
        .map(|block| serde_json::from_str(&block.join("\n")).unwrap())
        .collect();
    assert_eq!(policies.len(), 5);
    let tag = regex::Regex::new(r"(?:RequestTag|PrincipalTag|ExistingObjectTag)/([a-z-]+)").unwrap();
    let mut found = 0;
    for policy in policies {
        let policy = policy.to_string();
        for tag in tag.captures_iter(&policy) {
            assert!(text.contains(&format!("`{}`", &tag[1])), "{} is a tag", &tag[1]);
            found += 1;
        }
    }
    assert_eq!(found, 6);
}

/// A node never gets pods if it is registered with another taint than the one that the agent removes.
#[test]
fn examples_register_nodes_with_the_taint_that_their_values_remove() {
    let read = |path: &str| -> serde_json::Value {
        let text = fs::read_to_string(root().join("deploy/examples").join(path)).unwrap();
        serde_yaml_ng::from_str(&text).unwrap()
    };
    let of_values = |path: &str| read(path)["startupTaint"].as_str().unwrap().to_owned();
    let karpenter = read("nodes/karpenter.yaml");
    let template = &karpenter["spec"]["template"]["spec"];
    assert_eq!(template["startupTaints"][0]["key"], of_values("karpenter.yaml"));
    assert!(template["taints"].is_null(), "no pod would fit");
    let kops = read("nodes/kops.yaml");
    let taint = kops["spec"]["taints"][0].as_str().unwrap();
    let key = of_values("kops.yaml");
    assert_eq!(taint, format!("{key}=true:NoSchedule"));
    assert!(key.starts_with("startup-taint.cluster-autoscaler.kubernetes.io/"));
}

/// Pods of the chart would stay Pending on such nodes, because these nodes have no kernel for them.
#[test]
fn nodes_of_fargate_and_virtual_kubelets_are_left_out() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let text = template(&program, "v1.33.0", &["--set", "namespacePolicy=off"]).unwrap();
    for name in ["metaproxy", "metaproxy-guard"] {
        let made = document(&text, "DaemonSet", name);
        for (key, value) in [
            ("eks.amazonaws.com/compute-type", "fargate"),
            ("type", "virtual-kubelet"),
        ] {
            let expression = format!(
                "- key: {key}\n                operator: NotIn\n                values:\n                - {value}\n"
            );
            assert!(made.contains(&expression), "{key} in {made}");
        }
    }
}

/// A policy applies to a service account, so it cannot limit the user of a kubeconfig. Its API exists from Kubernetes
/// 1.30 on.
#[test]
fn patches_of_nodes_are_limited_where_the_cluster_can() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (version, flags, is_limited) in [
        ("v1.30.0", "startupTaint=a/b", true),
        ("v1.33.2-eks-abc1234", "startupTaint=a/b", true),
        ("v1.29.9", "startupTaint=a/b", false),
        ("v1.30.0", "startupTaint=", false),
        ("v1.30.0", "startupTaint=a/b,startupTaintPolicy=false", false),
        ("v1.30.0", "startupTaint=a/b,kubeconfig=/k", false),
    ] {
        let flags = format!("namespacePolicy=off,{flags}");
        let text = template(&program, version, &["--set", &flags]).unwrap();
        assert_eq!(text.contains("metaproxy-taint"), is_limited, "{version} {flags}");
        assert_eq!(
            text.contains("taint.key == 'a/b'"),
            is_limited,
            "{version} {flags}"
        );
    }
}

/// helm creates policies last, so the agent waits for the policy for tokens. Both policies can also be applied before
/// an installation, and helm then adopts them.
#[test]
fn policies_hold_before_what_they_limit_is_used_and_are_no_hooks() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for (version, flags, is_required) in [
        ("v1.30.0", "webIdentity.enabled=true", true),
        ("v1.29.9", "webIdentity.enabled=true", false),
        (
            "v1.33.0",
            "webIdentity.enabled=true,webIdentity.admissionPolicy=false",
            false,
        ),
        ("v1.33.0", "webIdentity.enabled=false", false),
    ] {
        let flags = format!("namespacePolicy=off,{flags}");
        let text = template(&program, version, &["--set", &flags]).unwrap();
        let lines = "- name: METAPROXY_TOKEN_POLICY\n              value: required\n";
        assert_eq!(text.contains(lines), is_required, "{version} {flags}");
        assert_eq!(
            text.contains("name: metaproxy-tokens\n"),
            is_required,
            "{version} {flags}"
        );
    }
    let values = "namespacePolicy=off,webIdentity.enabled=true,startupTaint=a/b";
    for policy in ["admissionpolicy", "taintpolicy"] {
        let show = format!("templates/{policy}.yaml");
        let text = template(&program, "v1.33.0", &["--set", values, "--show-only", &show]).unwrap();
        let adopted = "  annotations:\n    meta.helm.sh/release-name: metaproxy\n    meta.helm.sh/release-namespace: kube-system\n";
        for line in [
            adopted,
            "app.kubernetes.io/managed-by: Helm\n",
            "\nkind: ValidatingAdmissionPolic",
        ] {
            assert_eq!(
                text.matches(line).count(),
                2,
                "policy and binding have {line} in {text}"
            );
        }
        assert!(!text.contains("helm.sh/hook"), "{text}");
        // A policy with a parameter object (`paramKind: Pod`) is evaluated for each object of a namespace, and
        // uses changes of these objects late.
        assert!(!text.contains("paramKind"), "{text}");
    }
}

#[test]
fn the_pod_takes_no_port_of_the_node_and_its_probes_need_none() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    for values in value_sets() {
        let text = template(&program, "1.30", &["--values", values.to_str().unwrap()]).unwrap();
        let takes_port = |line: &str| {
            let key = line.trim_start_matches([' ', '-']);
            key.starts_with("ports:") || key.starts_with("hostPort:")
        };
        assert!(!text.lines().any(takes_port), "{}", values.display());
        let guards = text.matches("- guard\n").count();
        assert_eq!(
            text.matches("command: [/metaproxy, probe, ").count(),
            3 + 2 * guards
        );
        assert!(text.contains("hostNetwork: true"));
    }
}

/// Values of other types and with special characters reach the agent unchanged.
#[test]
fn odd_values_come_through_as_they_are() {
    let Some(program) = tool("kubernetes/helm") else {
        return;
    };
    let words = [
        "--set",
        "namespacePolicy=false,adminAddress=false,log.audit=false,sessions.tags=true,sessions.region=eusc-de-east-1",
        "--set-string",
        "sessions.clusterName=my: cluster,roles.default=a #b",
        "--set-string",
        r"nodeSelector.kubernetes\.io/os=linux",
    ];
    let text = template(&program, "1.30", &words).unwrap();
    for argument in [
        "--audit=off",
        "--session-tags=on",
        "--cluster-name=my: cluster",
        "--default-role=a #b",
    ] {
        assert!(
            text.contains(&format!("- \"{argument}\"")),
            "{argument} in {text}"
        );
    }
    for (variable, value) in [
        ("METAPROXY_NAMESPACE_POLICY", "off"),
        ("METAPROXY_ADMIN_ADDRESS", "off"),
        ("METAPROXY_REGION", "eusc-de-east-1"),
        ("METAPROXY_LISTEN_PORT", "0"),
    ] {
        let lines = format!("- name: {variable}\n              value: \"{value}\"\n");
        assert!(text.contains(&lines), "{variable} in {text}");
    }
    assert_eq!(text.matches("kubernetes.io/os: linux").count(), 2);
}
