mod accounted;

use std::fs;

use super::*;
use crate::cli::{Cli, Command};
use crate::explain::Verdict;
use rstest::rstest;

fn explained(text: &str, flags: &[&str], wanted: Option<&str>) -> Result<Vec<Explanation>, OfflineError> {
    Ok(all(text, flags, wanted)?.explanations)
}

fn explained_with(text: &str, flags: &[&str]) -> Explanation {
    explained(text, flags, None).unwrap().remove(0)
}

fn all(text: &str, flags: &[&str], wanted: Option<&str>) -> Result<Explained, OfflineError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    fs::write(dir.path().join("below/app.yaml"), text).unwrap();
    fs::write(dir.path().join("README.md"), "no: manifest: at all").unwrap();
    let words = ["metaproxy", "explain", "--manifests", "/dir"];
    let base: &[&str] = if flags.contains(&"--base-role-arn") {
        &[]
    } else {
        &["--base-role-arn", "arn:aws:iam::123456789012:role/"]
    };
    let words = words.iter().chain(base).chain(flags);
    let Command::Explain(args) = Cli::from_words(words).unwrap().command else {
        panic!("not explain");
    };
    explain(
        &args.roles.rules(None, false).unwrap(),
        dir.path(),
        &args.namespace,
        wanted,
    )
}

const APP: &str = r#"
apiVersion: v1
kind: Namespace
metadata: { name: apps, annotations: { iam.amazonaws.com/permitted: "web-.*" } }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: apps, annotations: { iam.amazonaws.com/external-id: party } }
spec: { template: { metadata: { annotations: { iam.amazonaws.com/role: web-reader } }, spec: { containers: [] } } }
---
apiVersion: batch/v1
kind: CronJob
metadata: { name: nightly, namespace: apps }
spec: { jobTemplate: { spec: { template: { metadata: { annotations: { iam.amazonaws.com/role: backup } }, spec: {} } } } }
---
kind: List
apiVersion: v1
items:
- { apiVersion: v1, kind: Pod, metadata: { generateName: single-, annotations: { iam.amazonaws.com/role: web-reader } } }
- { apiVersion: example.com/v1, kind: Pod, metadata: { name: of-another-group } }
"#;

#[test]
fn templates_of_workloads_are_explained_as_the_pods_that_they_make() {
    let found = explained(APP, &["-n", "apps"], None).unwrap();
    let verdicts: Vec<_> = found.iter().map(|one| (one.pod.as_str(), one.verdict)).collect();
    let expected = [
        ("apps/web", Verdict::Granted),
        ("apps/nightly", Verdict::Refused),
        ("apps/single-", Verdict::Granted),
    ];
    assert_eq!(verdicts, expected);
    assert_eq!(
        found[0].role.as_deref(),
        Some("arn:aws:iam::123456789012:role/web-reader")
    );
    assert!(
        found[0].hints[0].contains("move it to the pod template"),
        "{:?}",
        found[0].hints
    );
    assert_eq!(found[0].policies[0].allowed_by.as_deref(), Some("web-.*"));
}

#[test]
fn objects_without_a_namespace_are_in_the_given_one_which_is_reported_if_missing() {
    let found = explained(APP, &[], Some("default/single-")).unwrap();
    assert_eq!(found[0].verdict, Verdict::Unknown, "nothing is waited for");
    let because = &found[0].because;
    assert!(
        because.starts_with("namespace default is in none of the manifests"),
        "{because}"
    );
    assert!(
        found[0].hints[0].contains("kubectl get namespace default"),
        "{:?}",
        found[0].hints
    );
}

#[test]
fn missing_pods_and_malformed_manifests_are_errors() {
    let error = explained(APP, &[], Some("apps/other")).unwrap_err().to_string();
    assert!(
        error.contains("no pod or pod template is named apps/other; there are apps/web, apps/nightly"),
        "{error}"
    );
    let error = explained("kind: Namespace\nmetadata: { name: apps }\n", &[], None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("neither a pod nor a pod template"), "{error}");
    let error = explained("a: b\nc: [\n", &[], None).unwrap_err().to_string();
    assert!(error.contains("below/app.yaml:"), "{error}");
}

/// The objects are Argo's Rollout, an operator's object with two templates, Knative's Service, and objects without a
/// template.
const OTHERS: &str = r#"
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: { name: roll, namespace: apps }
spec: { template: { metadata: { annotations: { iam.amazonaws.com/role: web-reader } }, spec: { containers: [{ name: a }] } } }
---
apiVersion: ray.io/v1
kind: RayCluster
metadata: { name: ray, namespace: apps }
spec:
  headGroupSpec: { template: { metadata: { labels: { iam.amazonaws.com/role: web-reader } }, spec: { containers: [] } } }
  workerGroupSpecs: [{ template: { spec: { containers: [] } } }]
---
apiVersion: sparkoperator.k8s.io/v1beta2
kind: SparkApplication
metadata: { name: spark, namespace: apps }
spec: { driver: { annotations: { iam.amazonaws.com/role: web-reader } } }
---
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: { name: tls, namespace: apps }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: notes }
data: { text: "iam.amazonaws.com/role is an annotation" }
---
apiVersion: v1
kind: Namespace
metadata: { name: apps, annotations: { iam.amazonaws.com/permitted: "web-.*" } }
"#;

#[test]
fn templates_of_unknown_kinds_are_found_and_skipped_objects_are_reported() {
    let found = all(OTHERS, &[], None).unwrap();
    let verdicts: Vec<_> = found
        .explanations
        .iter()
        .map(|one| (one.pod.as_str(), one.verdict, one.is_bad()))
        .collect();
    let expected = [
        ("apps/roll", Verdict::Granted, false),
        ("apps/ray-1", Verdict::NoRole, true),
        ("apps/ray-2", Verdict::NoRole, false),
    ];
    assert_eq!(verdicts, expected);
    let hint = &found.explanations[1].hints[0];
    assert!(
        hint.contains("iam.amazonaws.com/role is a label of the pod"),
        "{hint}"
    );
    let skipped: Vec<(String, bool)> = found
        .skipped
        .iter()
        .filter(|one| !one.to_string().contains("README.md"))
        .map(|one| (one.to_string(), one.is_bad()))
        .collect();
    assert_eq!(skipped.len(), 2, "{skipped:?}");
    let (spark, certificate) = (&skipped[0], &skipped[1]);
    assert!(
        spark
            .0
            .contains("app.yaml:13: SparkApplication apps/spark has iam.amazonaws.com/role")
            && spark.1,
        "{spark:?}"
    );
    assert!(
        certificate.0.contains("Certificate apps/tls was skipped") && !certificate.1,
        "{certificate:?}"
    );
}

#[test]
fn a_values_file_of_a_chart_is_refused() {
    let error = explained("podAnnotations: { iam.amazonaws.com/role: app }\n", &[], None).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("an object without `kind` has iam.amazonaws.com/role"),
        "{error}"
    );
}

/// Each case has a pod's metadata and spec, and the expected hint.
#[rstest]
#[case::inner_quotes(
    "annotations: { iam.amazonaws.com/role: '\"app\"' }",
    "containers: []",
    Verdict::Refused,
    "did you mean app?"
)]
#[case::a_profile(
    "annotations: { iam.amazonaws.com/role: 'arn:aws:iam::123456789012:instance-profile/app' }",
    "containers: []",
    Verdict::Refused,
    "did you mean arn:aws:iam::123456789012:role/app?"
)]
#[case::role_twice(
    "annotations: { iam.amazonaws.com/role: 'role:role/app' }",
    "containers: []",
    Verdict::Granted,
    "did you mean app?"
)]
#[case::a_label(
    "labels: { iam.amazonaws.com/role: app }",
    "containers: []",
    Verdict::NoRole,
    "make it an annotation"
)]
#[case::pod_identity(
    "annotations: { iam.amazonaws.com/role: app }",
    "containers: [{ env: [{ name: AWS_CONTAINER_CREDENTIALS_FULL_URI, value: x }] }]",
    Verdict::Granted,
    "AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS Pod Identity): an SDK takes its credentials from there, and never falls back"
)]
#[case::irsa(
    "annotations: { iam.amazonaws.com/role: app }",
    "initContainers: [{ env: [{ name: AWS_WEB_IDENTITY_TOKEN_FILE, value: x }] }]",
    Verdict::Granted,
    "AWS_WEB_IDENTITY_TOKEN_FILE (IRSA)"
)]
fn a_slip_has_a_hint(
    #[case] metadata: &str,
    #[case] spec: &str,
    #[case] verdict: Verdict,
    #[case] hint: &str,
) {
    let text = format!("kind: Pod\nmetadata:\n  name: web\n  {metadata}\nspec:\n  {spec}\n");
    let found = explained(&text, &["--namespace-policy", "off"], None).unwrap();
    assert_eq!(found[0].verdict, verdict, "{}", found[0]);
    assert!(
        found[0].hints.iter().any(|found| found.contains(hint)),
        "{}",
        found[0]
    );
}

/// The list is as uswitch/kiam#2 proposes it. The number is an external id as users write it
/// (kubernetes-sigs/external-dns#4683 describes the effect).
#[rstest]
#[case::a_list(
    "kind: Namespace\nmetadata: { name: apps, annotations: { iam.amazonaws.com/allowed-roles: [app-*] } }\n",
    "annotation iam.amazonaws.com/allowed-roles is a list"
)]
#[case::a_number(
    "kind: Deployment\nmetadata: { name: a }\nspec: { template: { metadata: { annotations: { iam.amazonaws.com/external-id: \
     4711 } }, spec: { containers: [] } } }\n",
    "annotation iam.amazonaws.com/external-id is a number"
)]
#[case::a_switch(
    "kind: Pod\nmetadata: { name: a, labels: { x: true } }\n",
    "label x is a boolean"
)]
fn values_that_kubernetes_refuses_are_errors_with_advice(#[case] text: &str, #[case] what: &str) {
    let error = explained(text, &[], None).unwrap_err().to_string();
    assert!(
        error.contains("app.yaml:1: ") && error.contains(what) && error.contains("in quotation marks"),
        "{error}"
    );
}

/// A chart with an unset value gives such an annotation (Yelp/paasta#2481 asks whether it means no role).
#[rstest]
#[case::null("annotations: { iam.amazonaws.com/role: }")]
#[case::empty("annotations: { iam.amazonaws.com/role: '' }")]
#[case::blank("annotations: { iam.amazonaws.com/role: ' ' }")]
#[case::no_annotations("annotations:")]
fn an_annotation_that_is_null_or_empty_requests_no_role(#[case] metadata: &str) {
    let text = format!(
        "kind: Namespace\nmetadata:\n  name: default\n  {metadata}\n---\nkind: Pod\nmetadata:\n  name: web\n  {metadata}\n"
    );
    let found = explained(&text, &[], None).unwrap();
    assert_eq!(found[0].verdict, Verdict::NoRole, "{}", found[0]);
}

/// banzaicloud/thanos-operator#48: the operator has its own field for annotations, and only the operator knows their
/// effect.
#[test]
fn an_operators_object_that_names_a_role_is_reported() {
    let thanos = "apiVersion: monitoring.banzaicloud.io/v1alpha1\nkind: Thanos\nmetadata: { name: ice }\nspec: { query: { \
                  workloadMetaOverrides: { annotations: { iam.amazonaws.com/role: k8s-thanos-metrics } } } }\n";
    let text = format!("{thanos}---\nkind: Pod\nmetadata: {{ name: web }}\n");
    let found = all(&text, &[], None).unwrap();
    assert!(
        found.skipped[0].to_string().contains("Thanos ice has"),
        "{}",
        found.skipped[0]
    );
    assert!(found.skipped[0].is_bad(), "{}", found.skipped[0]);
}

/// Each case has an annotation of the namespace. The pod requests a role by its name, with `--base-role-arn
/// …:role/workloads/`.
#[rstest]
// uswitch/kiam#326: the path comes from the base ARN, and kiam did not take it into account.
#[case::path_of_the_base("permitted: '.*workloads/.*'", Verdict::Granted, "")]
// uswitch/kiam#391: the value is a glob.
#[case::a_glob(
    "permitted: 'arn:aws:iam::123456789012:role/workloads/*'",
    Verdict::Refused,
    "did you mean `arn:aws:iam::123456789012:role/workloads/.*`?"
)]
// clusterfrak-dynamics/terraform-eks-addons, fluentd-cloudwatch.tf: the value for namespaces that must have no roles.
#[case::nothing("permitted: '^$'", Verdict::Refused, "")]
// ministryofjustice/cloud-platform-terraform-velero: the value for namespaces whose service accounts have the roles.
#[case::empty(
    "permitted: ''",
    Verdict::Refused,
    "an empty iam.amazonaws.com/permitted allows nothing"
)]
#[case::a_block_of_text("allowed-roles: |\n      [\"my-*\"]\n", Verdict::Granted, "")]
fn a_namespaces_annotation_is_read_as_intended_or_has_a_hint(
    #[case] annotation: &str,
    #[case] verdict: Verdict,
    #[case] hint: &str,
) {
    let text = format!(
        "kind: Namespace\nmetadata:\n  name: default\n  annotations:\n    iam.amazonaws.com/{annotation}\n---\nkind: \
         Pod\nmetadata: {{ name: web, annotations: {{ iam.amazonaws.com/role: my-role }} }}\n"
    );
    let flags = ["--base-role-arn", "arn:aws:iam::123456789012:role/workloads/"];
    let found = explained_with(&text, &flags);
    assert_eq!(found.verdict, verdict, "{found}");
    let is_hinted = found.hints.iter().any(|found| found.contains(hint));
    assert!(hint.is_empty() || is_hinted, "{found}");
}
