use super::*;
use crate::cli::{Cli, Command};
use crate::explain::Verdict;

fn explained(text: &str, flags: &[&str], wanted: Option<&str>) -> Result<Vec<Explanation>, OfflineError> {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("below")).unwrap();
    fs::write(dir.path().join("below/app.yaml"), text).unwrap();
    fs::write(dir.path().join("README.md"), "no: manifest: at all").unwrap();
    let words = ["metaproxy", "explain", "--manifests", "/dir"];
    let base = ["--base-role-arn", "arn:aws:iam::123456789012:role/"];
    let words = words.iter().chain(&base).chain(flags);
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
        found[0].hints[0].contains("belongs to its pod template"),
        "{:?}",
        found[0].hints
    );
    assert_eq!(found[0].policies[0].allowed_by.as_deref(), Some("web-.*"));
}

#[test]
fn objects_without_a_namespace_are_in_the_one_that_is_named_and_a_missing_one_is_told() {
    let found = explained(APP, &[], Some("default/single-")).unwrap();
    assert_eq!(found[0].verdict, Verdict::Waiting);
    assert!(
        found[0].hints[0].contains("kubectl get namespace default"),
        "{:?}",
        found[0].hints
    );
}

#[test]
fn what_is_not_there_or_can_not_be_read_is_told() {
    let error = explained(APP, &[], Some("apps/other")).unwrap_err().to_string();
    assert!(
        error.contains("no pod apps/other; there are apps/web, apps/nightly"),
        "{error}"
    );
    let error = explained("kind: Namespace\nmetadata: { name: apps }\n", &[], None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("no pod in it"), "{error}");
    let error = explained("a: b\nc: [\n", &[], None).unwrap_err().to_string();
    assert!(error.contains("below/app.yaml:"), "{error}");
}
