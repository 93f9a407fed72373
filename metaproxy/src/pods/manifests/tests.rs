use super::*;
use crate::pods::{HostPort, Mirror, Pod, PodUid};
use proptest::prelude::*;
use rstest::rstest;

const A: &str = "aaaaaaaa-0000-0000-0000-000000000001";
const B: &str = "bbbbbbbb-0000-0000-0000-000000000002";

const HASH: &str = "8f8a9d1e5c3b4a2f8f8a9d1e5c3b4a2f";

fn pod_yaml(name: &str, uid: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: apps\n  uid: {uid}\n")
}

fn uid(text: &str) -> PodUid {
    text.parse().unwrap()
}

fn pod(inventory: &Inventory, text: &str) -> Option<Arc<Pod>> {
    match inventory.by_uid(&uid(text)) {
        Some(Known::Pod(pod)) => Some(Arc::clone(pod)),
        _ => None,
    }
}

fn names(objects: &Objects) -> Vec<String> {
    objects.pods.iter().map(ToString::to_string).collect()
}

#[test]
fn one_file_may_contain_objects_of_several_kinds() {
    let text = format!(
        "# apps\n---\n{}---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: apps\n  annotations:\n    \
         iam.amazonaws.com/permitted: .*\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: sa, namespace: \
         apps}}\n--- \n{}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\n...\n",
        pod_yaml("a", A),
        pod_yaml("b", B),
    );
    let objects = parse::yaml(&text).unwrap();
    assert_eq!(names(&objects), ["apps/a", "apps/b"]);
    assert_eq!(
        objects.namespaces[0].annotations["iam.amazonaws.com/permitted"],
        ".*"
    );
    assert_eq!(objects.service_accounts[0].name, "sa");
    assert!(objects.problems.is_empty());
}

#[test]
fn a_list_as_kubectl_prints_it_is_read_in_yaml_and_json() {
    let item = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"a","namespace":"apps","uid":"{A}"}}}}"#
    );
    let list = format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\n\t\"items\":[{item}]}}");
    assert_eq!(names(&parse::json(&list).unwrap()), ["apps/a"]);
    assert_eq!(names(&parse::yaml(&list.replace('\t', " ")).unwrap()), ["apps/a"]);
    assert_eq!(
        names(&parse::json(&format!("{item}\n{item}")).unwrap()),
        ["apps/a", "apps/a"]
    );
}

#[test]
fn an_annotation_that_is_null_counts_as_missing() {
    let text = format!(
        "kind: Pod\nmetadata: {{name: a, uid: {A}, annotations: {{iam.amazonaws.com/role: , b: c}}, labels: {{x: }}}}\n"
    );
    let objects = parse::yaml(&text).unwrap();
    assert_eq!(objects.pods[0].annotation("iam.amazonaws.com/role"), None);
    let text = format!(
        r#"{{"kind":"Pod","metadata":{{"name":"a","uid":"{A}","annotations":{{"iam.amazonaws.com/role":null}},"labels":null}}}}"#
    );
    let objects = parse::json(&text).unwrap();
    assert_eq!(objects.pods[0].annotation("iam.amazonaws.com/role"), None);
}

/// A number is read as it is written. A value that is not text is an error that names the annotation.
#[test]
fn an_annotation_that_is_not_text_is_named_with_its_line() {
    let annotated = |value: &str| {
        let text = format!(
            "kind: Pod\nmetadata:\n  name: a\n  uid: {A}\n  annotations:\n    iam.amazonaws.com/external-id: {value}\n"
        );
        parse::yaml(&text)
    };
    let pod = &annotated("0042").unwrap().pods[0];
    assert_eq!(pod.annotation("iam.amazonaws.com/external-id"), Some("0042"));
    let error = annotated("[a, b]").unwrap_err().to_string();
    assert!(
        error.starts_with("6: ") && error.contains("iam.amazonaws.com/external-id"),
        "{error}"
    );
}

#[test]
fn all_fields_of_a_pod_that_the_agent_uses_are_read() {
    let text = format!(
        "kind: Pod\nmetadata:\n  name: a\n  uid: {A}\n  annotations: {{kubernetes.io/config.hash: {HASH}, kubernetes.io/config.mirror: {HASH}}}\n  \
         ownerReferences: [{{apiVersion: v1, kind: Node, name: n1, uid: n, controller: true}}]\nspec:\n  \
         hostNetwork: true\n  nodeName: n1\n  serviceAccountName: sa\n  containers:\n  - name: c\n    ports: \
         [{{containerPort: 80, hostPort: 8080}}]\nstatus:\n  startTime: '2026-01-01T00:00:00Z'\n  podIPs: [{{ip: 10.0.0.1}}, {{ip: 'fd00::1'}}]\n"
    );
    let objects = parse::yaml(&text).unwrap();
    let pod = &objects.pods[0];
    assert_eq!(
        (pod.namespace.as_str(), pod.service_account.as_str()),
        ("default", "sa")
    );
    assert_eq!(pod.mirror, Mirror::Confirmed(uid(HASH)));
    assert!(pod.host_network);
    let host_port = HostPort { port: 8080, ip: None };
    assert_eq!(pod.host_ports, [host_port]);
    assert_eq!(pod.ips.len(), 2);
    let inventory = Inventory::new(objects.pods.clone(), [], []);
    assert!(
        matches!(inventory.by_uid(&uid(HASH)), Some(Known::Pod(_))),
        "static pods are found by hash too"
    );
}

#[rstest]
#[case::syntax("kind: Pod\nmetadata:\n  name: [a\n", 4)]
#[case::indentation("kind: Pod\nmetadata:\n  name: a\n   uid: b\n", 4)]
#[case::wrong_type("kind: Pod\nmetadata:\n  name: a\nspec:\n  hostNetwork: 7\n", 5)]
#[case::second_document("kind: Namespace\nmetadata: {name: n}\n---\nkind: Pod\nmetadata: 7\n", 5)]
#[case::no_kind("metadata: {name: n}\n", 1)]
#[case::no_object("---\njust text\n", 2)]
fn a_broken_file_is_reported_with_its_line(#[case] text: &str, #[case] line: usize) {
    let broken = parse::yaml(text).unwrap_err().to_string();
    assert!(broken.starts_with(&format!("{line}: ")), "{broken}");
}

#[test]
fn broken_json_is_reported_with_its_line() {
    let broken = parse::json("{\"kind\": \"Namespace\",\n \"metadata\": {\"name\": }}\n").unwrap_err();
    assert!(broken.to_string().starts_with("2: "), "{broken}");
}

#[rstest]
#[case::no_metadata("kind: Namespace\n")]
#[case::null("kind: Namespace\nmetadata: null\n")]
#[case::empty("kind: Namespace\nmetadata:\n")]
fn an_object_without_metadata_is_reported_and_the_others_are_served(#[case] other: &str) {
    let text = format!("{other}---\n{}", pod_yaml("web", "u-1"));
    let objects = parse::yaml(&text).unwrap();
    assert_eq!(
        (names(&objects).len(), objects.problems.len()),
        (1, 1),
        "{objects:?}"
    );
}

#[test]
fn kinds_of_other_api_groups_with_the_same_names_are_ignored() {
    let text = "apiVersion: example.com/v1\nkind: Namespace\nmetadata:\n  name: apps\n  annotations:\n    \
                iam.amazonaws.com/permitted: .*\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: own\n";
    let objects = parse::yaml(text).unwrap();
    let found: Vec<&str> = objects
        .namespaces
        .iter()
        .map(|namespace| namespace.name.as_str())
        .collect();
    assert_eq!(found, ["own"]);
}

#[test]
fn a_pod_without_uid_is_reported_and_the_others_are_served() {
    let text = format!(
        "kind: Pod\nmetadata: {{name: x, namespace: apps}}\n---\n{}",
        pod_yaml("a", A)
    );
    let objects = parse::yaml(&text).unwrap();
    assert_eq!(names(&objects), ["apps/a"]);
    let problem = objects.problems[0].to_string();
    assert!(
        problem.starts_with("1: pod apps/x has no metadata.uid"),
        "{problem}"
    );
}

#[test]
fn a_file_that_becomes_invalid_keeps_its_last_good_content_and_others_change() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), pod_yaml("a", A)).unwrap();
    fs::write(dir.path().join("b.yaml"), pod_yaml("b", B)).unwrap();
    let mut manifests = Manifests::open(dir.path(), None).unwrap();
    assert!(pod(&manifests.inventory(), A).is_some());

    fs::write(dir.path().join("a.yaml"), "kind: Pod\nmetadata: [").unwrap();
    fs::remove_file(dir.path().join("b.yaml")).unwrap();
    assert!(manifests.refresh().unwrap());
    assert!(
        pod(&manifests.inventory(), A).is_some(),
        "the last good state stays"
    );
    assert!(pod(&manifests.inventory(), B).is_none());

    fs::write(dir.path().join("a.yaml"), pod_yaml("a2", A)).unwrap();
    manifests.refresh().unwrap();
    assert_eq!(pod(&manifests.inventory(), A).unwrap().name, "a2");
    assert!(!manifests.refresh().unwrap(), "nothing changed");
}

#[test]
fn two_pods_with_one_uid_are_ambiguous_and_the_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "{}---\n{}---\n{}",
        pod_yaml("a", A),
        pod_yaml("thief", A),
        pod_yaml("b", B)
    );
    fs::write(dir.path().join("pods.yaml"), text).unwrap();
    let mut manifests = Manifests::open(dir.path(), None).unwrap();
    let inventory = manifests.inventory();
    assert!(matches!(inventory.by_uid(&uid(A)), Some(Known::Ambiguous(names)) if names.len() == 2));
    assert!(pod(&inventory, B).is_some());
    manifests.report_ambiguous(&inventory);
    assert!(
        manifests.ambiguous[0].contains("apps/a and apps/thief"),
        "{:?}",
        manifests.ambiguous
    );
}

/// The hash is an annotation, which every user with the right to create pods can write.
#[test]
fn a_hash_never_replaces_another_pods_uid() {
    let annotated = |name: &str, own: &str, hash: &str, mirror: bool| {
        let mirror = if mirror {
            format!("kubernetes.io/config.mirror: {hash}, ")
        } else {
            String::new()
        };
        format!(
            "kind: Pod\nmetadata:\n  name: {name}\n  uid: {own}\n  annotations: {{{mirror}kubernetes.io/config.hash: \
             {hash}}}\n  ownerReferences: [{{apiVersion: v1, kind: Node, name: n1, controller: true}}]\nspec: {{nodeName: \
             n1}}\nstatus: {{startTime: '2026-01-01T00:00:00Z'}}\n"
        )
    };
    let inventory = |text: &str| {
        let objects = parse::yaml(text).unwrap();
        Inventory::new(objects.pods, objects.namespaces, objects.service_accounts)
    };
    let thief = inventory(&annotated("thief", B, A, true));
    assert!(thief.by_uid(&uid(A)).is_none(), "another pod's UID is no hash");
    let ordinary = inventory(&annotated("thief", B, HASH, false));
    assert!(ordinary.by_uid(&uid(HASH)).is_none(), "only mirror pods have one");
    let both = inventory(&format!(
        "{}---\n{}",
        annotated("thief", B, HASH, true),
        pod_yaml("victim", HASH)
    ));
    assert_eq!(
        pod(&both, HASH).unwrap().name,
        "victim",
        "a UID is not made ambiguous by a hash"
    );
}

proptest! {
    /// Any content of a file is parsed or reported with a line.
    #[test]
    fn any_text_is_read_or_reported(text in "\\PC{0,200}", yaml: bool) {
        let result = if yaml { parse::yaml(&text) } else { parse::json(&text) };
        if let Err(broken) = result {
            let line: usize = broken.to_string().split(':').next().unwrap().parse().unwrap();
            prop_assert!(line >= 1);
        }
    }

    /// Documents before or after a pod do not change it.
    #[test]
    fn other_documents_do_not_change_a_pod(other in "[a-z]{1,8}: [a-z0-9]{1,8}", before: bool) {
        let other = format!("kind: Other\n{other}x\n");
        let own = pod_yaml("a", A);
        let text = if before { format!("{other}---\n{own}") } else { format!("{own}---\n{other}") };
        prop_assert_eq!(names(&parse::yaml(&text).unwrap()), ["apps/a"]);
    }
}

#[test]
fn pods_of_other_nodes_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("a.yaml"),
        pod_yaml("a", A) + "spec: {nodeName: other, containers: []}\n",
    )
    .unwrap();
    fs::write(dir.path().join("b.yaml"), pod_yaml("b", B)).unwrap();
    let inventory = Manifests::open(dir.path(), Some("this".to_owned()))
        .unwrap()
        .inventory();
    assert!(pod(&inventory, A).is_none() && pod(&inventory, B).is_some());
    let everywhere = Manifests::open(dir.path(), None).unwrap().inventory();
    assert!(pod(&everywhere, A).is_some());
}

#[test]
fn a_missing_directory_is_an_error_that_names_it() {
    let error = Manifests::open(Path::new("/nonexistent/pods"), None)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("--manifests /nonexistent/pods: No such file"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_published_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let manifests = Manifests::open(dir.path(), None).unwrap();
    let (publish, mut pods) = watch::channel(Arc::new(Inventory::default()));
    let running = tokio::spawn(manifests.run(publish));
    pods.changed().await.unwrap();
    fs::write(dir.path().join("a.yaml"), pod_yaml("a", A)).unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(1), pods.wait_for(|now| pod(now, A).is_some())).await;
    assert!(seen.is_ok(), "heard of within a second");
    running.abort();
}

#[test]
fn a_file_or_directory_that_cannot_be_read_degrades_the_pods_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let manifests_dir = dir.path().join("pods");
    fs::create_dir(&manifests_dir).unwrap();
    let file = manifests_dir.join("a.yaml");
    fs::write(&file, pod_yaml("a", A)).unwrap();
    let mut manifests = Manifests::open(&manifests_dir, None).unwrap();
    let mut condition = || {
        let refreshed = manifests.refresh();
        (
            manifests.condition(refreshed.as_ref().map(|_| ())),
            manifests.inventory().len(),
        )
    };
    assert_eq!(condition(), (Condition::Fine, 1));

    fs::write(&file, "kind: [Pod, and so on").unwrap();
    let (broken, pods) = condition();
    let names_it = matches!(&broken, Condition::Degraded(why) if why.contains("a.yaml:1") && why.contains("(1 objects)"));
    assert!(names_it && pods == 1, "{broken:?}");
    assert_eq!(condition(), (broken, 1), "it has not changed since");

    fs::write(&file, pod_yaml("another", B)).unwrap();
    assert_eq!(condition(), (Condition::Fine, 1));

    fs::remove_dir_all(&manifests_dir).unwrap();
    let (gone, pods) = condition();
    let names_it = matches!(&gone, Condition::Degraded(why) if why.starts_with("--manifests "));
    assert!(names_it && pods == 1, "{gone:?}");
}
