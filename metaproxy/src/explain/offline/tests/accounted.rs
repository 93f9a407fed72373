//! Tests that every annotation about roles in manifests is read or reported, in any place of an object.

use std::fs;
use std::path::Path;

use rstest::rstest;

use super::all;
use crate::cli::{Cli, Command};
use crate::explain::Verdict;
use crate::explain::offline::{Explained, explain};

/// A pod without a role, so that there is something to explain.
const POD: &str = "kind: Pod\nmetadata: { name: web }\n---\n";

/// Returns the reports beside the explanations, and whether each makes the check fail. The report of the README that
/// every directory has is left out.
fn named(found: &Explained) -> Vec<(String, bool)> {
    let lines = found.skipped.iter().map(|one| (one.to_string(), one.is_bad()));
    lines.filter(|(line, _)| !line.contains("README.md")).collect()
}

#[rstest]
#[case::workload(
    "kind: Deployment\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x } }\nspec: { template: { spec: { containers: [] } } }",
    "Deployment a has iam.amazonaws.com/role at metadata.annotations"
)]
#[case::pod_annotations(
    "kind: Deployment\nmetadata: { name: a }\nspec: { podAnnotations: { iam.amazonaws.com/role: x }, template: { spec: { containers: [] } } }",
    "at spec.podAnnotations"
)]
#[case::of_the_spec(
    "kind: StatefulSet\nmetadata: { name: a }\nspec: { annotations: { iam.amazonaws.com/role: x }, template: { spec: {} } }",
    "at spec.annotations"
)]
#[case::outside_metadata(
    "kind: Deployment\nmetadata: { name: a }\nspec: { template: { annotations: { iam.amazonaws.com/role: x }, spec: { containers: [] } } }",
    "at spec.template.annotations"
)]
#[case::below_the_spec(
    "kind: Deployment\nmetadata: { name: a }\nspec: { template: { spec: { annotations: { iam.amazonaws.com/role: x } } } }",
    "at spec.template.spec.annotations"
)]
#[case::singular(
    "kind: Pod\nmetadata: { name: a, annotation: { iam.amazonaws.com/role: x } }",
    "Pod a has iam.amazonaws.com/role at metadata.annotation,"
)]
#[case::cron_job(
    "kind: CronJob\nmetadata: { name: a }\nspec: { jobTemplate: { metadata: { annotations: { iam.amazonaws.com/role: x } }, spec: { \
     template: { spec: {} } } } }",
    "at spec.jobTemplate.metadata.annotations"
)]
#[case::an_operator(
    "kind: Widget\nmetadata: { name: a }\nspec: { podMetadata: { annotations: { iam.amazonaws.com/role: x } }, containers: [] }",
    "Widget a has iam.amazonaws.com/role at spec.podMetadata.annotations"
)]
#[case::rollout(
    "kind: Rollout\nmetadata: { name: a }\nspec: { canary: { iam.amazonaws.com/external-id: x }, template: { spec: { containers: [] } } }",
    "has iam.amazonaws.com/external-id at spec.canary"
)]
#[case::namespace(
    "kind: Namespace\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x } }",
    "Namespace a has iam.amazonaws.com/role at metadata.annotations"
)]
#[case::service_account(
    "kind: ServiceAccount\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x } }",
    "ServiceAccount a has iam.amazonaws.com/role"
)]
#[case::service(
    "kind: Service\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x } }",
    "Service a has iam.amazonaws.com/role"
)]
#[case::role_of_an_account(
    "kind: Deployment\nmetadata: { name: a, annotations: { eks.amazonaws.com/role-arn: x } }\nspec: { template: { spec: {} } }",
    "move it to metadata.annotations of a service account"
)]
// Airflow's pod_template_file.
#[case::config_map(
    "kind: ConfigMap\nmetadata: { name: a }\ndata:\n  pod.yaml: |\n    kind: Pod\n    metadata:\n      annotations:\n        \
     iam.amazonaws.com/role: a b\n",
    "ConfigMap a has iam.amazonaws.com/role in the text at data.pod.yaml"
)]
#[case::called_status(
    "kind: ConfigMap\nmetadata: { name: a }\ndata: { status: 'iam.amazonaws.com/role: x' }",
    "in the text at data.status"
)]
fn an_unread_annotation_is_reported_with_its_path(#[case] object: &str, #[case] said: &str) {
    let found = all(&format!("{POD}{object}\n"), &[], None).unwrap();
    let named = named(&found);
    assert_eq!(named.len(), 1, "{named:?}");
    let (line, is_bad) = &named[0];
    assert!(
        *is_bad && line.contains(said) && line.contains("app.yaml:3: "),
        "{line}"
    );
}

/// None of these is a slip.
#[rstest]
#[case::on_both(
    "kind: Deployment\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x } }\nspec: { template: { metadata: { annotations: { \
     iam.amazonaws.com/role: x } }, spec: {} } }"
)]
#[case::applied(
    "kind: Pod\nmetadata: { name: a, annotations: { iam.amazonaws.com/role: x, kubectl.kubernetes.io/last-applied-configuration: \
     '{\"metadata\":{\"annotations\":{\"iam.amazonaws.com/role\":\"x\"}}}' } }"
)]
#[case::our_own_flags(
    "kind: DaemonSet\nmetadata: { name: a }\nspec: { template: { spec: { containers: [{ name: a, args: \
     ['--role-annotation=iam.amazonaws.com/role'], env: [{ name: X, value: '{\"iam.amazonaws.com/role\": 1}' }] }] } } }"
)]
#[case::notes(
    "kind: ConfigMap\nmetadata: { name: a }\ndata: { text: 'iam.amazonaws.com/role is an annotation' }"
)]
#[case::a_rule(
    "kind: ValidatingAdmissionPolicy\nmetadata: { name: a }\nspec: { validations: [{ expression: \
     \"'iam.amazonaws.com/role' in object.metadata.annotations\" }] }"
)]
#[case::an_event("kind: Event\nmetadata: { name: a }\nmessage: 'iam.amazonaws.com/role: malformed'")]
fn read_annotations_and_mere_mentions_are_not_reported(#[case] object: &str) {
    let found = all(&format!("{POD}{object}\n"), &[], None).unwrap();
    assert_eq!(named(&found), []);
}

/// The Prometheus Operator's kinds have the metadata of their pods at `podMetadata`.
#[rstest]
#[case::sound("x", Verdict::Granted)]
#[case::malformed("a b", Verdict::Refused)]
fn pods_of_the_prometheus_operator_are_explained(#[case] role: &str, #[case] verdict: Verdict) {
    let text = format!(
        "apiVersion: monitoring.coreos.com/v1\nkind: Prometheus\nmetadata: {{ name: p }}\nspec: {{ podMetadata: {{ annotations: {{ \
         iam.amazonaws.com/role: '{role}' }} }}, containers: [{{ name: prometheus }}] }}\n"
    );
    let found = all(&text, &["--namespace-policy", "off"], None).unwrap();
    assert_eq!(found.explanations.len(), 1);
    assert_eq!(
        found.explanations[0].verdict, verdict,
        "{}",
        found.explanations[0]
    );
    assert_eq!(named(&found), []);
}

#[rstest]
#[case::off("off", 1)]
#[case::on("on", 0)]
fn a_service_accounts_role_is_reported_if_web_identity_is_off(#[case] switch: &str, #[case] lines: usize) {
    let account = "kind: ServiceAccount\nmetadata: { name: a, annotations: { eks.amazonaws.com/role-arn: \
                   'arn:aws:iam::123456789012:role/x' } }\n";
    let found = all(&format!("{POD}{account}"), &["--web-identity", switch], None).unwrap();
    let named = named(&found);
    assert_eq!(named.len(), lines, "{named:?}");
    assert!(
        named
            .iter()
            .all(|(line, is_bad)| line.contains("--web-identity=on only") && !is_bad),
        "{named:?}"
    );
}

fn of_dir(dir: &Path) -> Explained {
    let words = ["metaproxy", "explain", "--manifests", "/dir"];
    let Command::Explain(args) = Cli::from_words(words).unwrap().command else {
        panic!("not explain");
    };
    explain(&args.roles.rules(None, false).unwrap(), dir, "default", None).unwrap()
}

#[test]
fn skipped_files_of_a_directory_are_reported() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let role = "kind: Pod\nmetadata: { annotations: { iam.amazonaws.com/role: a b } }\n";
    write("good.yaml", POD);
    for name in ["bad", "bad.YAML", "bad.jsonc", "bad.yaml.tmpl", "notes.md"] {
        write(name, role);
    }
    write("kustomization.YML", "resources: []\n");
    write("run.sh", "true\n");
    let found = of_dir(dir.path());
    let lines: Vec<(String, bool)> = found
        .skipped
        .iter()
        .map(|one| (one.to_string(), one.is_bad()))
        .collect();
    assert_eq!(lines.len(), 6, "{lines:?}");
    for (line, is_bad) in &lines[..5] {
        assert!(
            line.contains("has iam.amazonaws.com/role, but was skipped"),
            "{line}"
        );
        assert_eq!(*is_bad, line.contains("/bad"), "{line}");
    }
    let (others, is_bad) = &lines[5];
    assert!(
        others.ends_with(": kustomization.YML, run.sh") && !is_bad,
        "{others}"
    );
}

/// kubectl reads merge keys too (YAML 1.1).
#[test]
fn merge_keys_are_read() {
    for labels in [
        "{ a: b }\n  annotations: { <<: *all, iam.amazonaws.com/role: x }",
        "{ iam.amazonaws.com/role: x }\n  annotations: { <<: *all }",
    ] {
        let text = format!("kind: Pod\nmetadata:\n  name: web\n  labels: &all {labels}\n");
        let found = all(&text, &["--namespace-policy", "off"], None).unwrap();
        let explanation = &found.explanations[0];
        assert_eq!(explanation.verdict, Verdict::Granted, "{explanation}");
    }
}

#[test]
fn an_object_in_yaml_flow_style_is_read() {
    let text = "{kind: Pod, metadata: {name: web, annotations: {iam.amazonaws.com/role: x}}}\n---\nkind: Pod\nmetadata: { name: b }\n";
    let found = all(text, &["--namespace-policy", "off"], None).unwrap();
    let verdicts: Vec<Verdict> = found.explanations.iter().map(|one| one.verdict).collect();
    assert_eq!(verdicts, [Verdict::Granted, Verdict::NoRole]);
    let error = all("{ \"kind\": \"Pod\", }}", &[], None).unwrap_err().to_string();
    assert!(error.contains("app.yaml:1: trailing comma"), "{error}");
}
