//! Checks that every word of a manifest is accounted for, and that several manifests agree: a flag that is overlooked
//! could give pods more access.

use rstest::rstest;
use serde_json::{Value, json};

use super::super::SourceSoftware;
use super::manifests::{KUBE2IAM, manifest, migrated, parsed, sentences};

/// Each of these command lines restricts namespaces, or may do so.
#[rstest]
#[case::of_a_config_map(
    json!({ "args": ["$(RESTRICT)"], "env": [{ "name": "RESTRICT", "valueFrom": { "configMapKeyRef": { "name": "c", "key": "k" } } }] }),
    "RESTRICT comes from ConfigMap c, key k"
)]
#[case::of_nothing(json!({ "args": ["$(RESTRICT)"] }), "RESTRICT is not in the manifest's `env`")]
#[case::terraform(json!({ "args": ["${RESTRICT}"] }), "${RESTRICT} is a placeholder")]
#[case::helm(json!({ "args": ["{{ .Values.flag }}"] }), "{{ .Values.flag }} is a placeholder")]
#[case::entrypoint(json!({ "command": ["/entrypoint.sh"] }), "it runs `entrypoint.sh`, which is not kube2iam")]
#[case::called_alike(json!({ "command": ["/opt/kube2iam-start.sh"] }), "which is not kube2iam")]
#[case::args_of_another(json!({ "args": ["/entrypoint.sh", "--debug"] }), "which is not kube2iam")]
#[case::two_in_one(json!({ "args": ["--namespace-restrictions --default-role=x"] }), "each flag is a word of its own")]
#[case::text(json!({ "args": "--namespace-restrictions" }), "its args is no list of strings")]
#[case::nested(json!({ "args": [["--namespace-restrictions"]] }), "its args is no list of strings")]
#[case::a_number(json!({ "command": ["kube2iam", 1] }), "its command is no list of strings")]
#[case::without_dashes(json!({ "args": ["namespace-restrictions"] }), "so its flags may be elsewhere")]
#[case::dashes_forgotten(json!({ "args": ["--debug", "namespace-restrictions"] }), "a flag begins with two dashes")]
#[case::refused_by_the_agent(json!({ "args": ["--namespace-key=bad key"] }), "--namespace-key: the agent would refuse its value")]
fn a_command_line_that_cannot_be_read_is_an_error(#[case] container: Value, #[case] why: &str) {
    let error = migrated(
        SourceSoftware::Kube2iam,
        &manifest(KUBE2IAM, container, json!({})),
    )
    .unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
}

#[rstest]
#[case::env(json!(["/usr/bin/env", "sh", "-c", "kube2iam --namespace-restrictions"]))]
#[case::tini(json!(["tini", "--", "sh", "-c", "exec kube2iam --namespace-restrictions"]))]
#[case::dumb_init(json!(["/usr/bin/dumb-init", "/bin/kube2iam", "--namespace-restrictions"]))]
fn a_wrapper_does_not_loosen_the_policy(#[case] command: Value) {
    let manifest = manifest(KUBE2IAM, json!({ "command": command }), json!({}));
    let values = migrated(SourceSoftware::Kube2iam, &manifest).unwrap();
    assert_eq!(parsed(&values)["namespacePolicy"], "required", "{values}");
    assert!(!values.contains("not known to this program"), "{values}");
}

/// Each of these containers is beside the one that restricts namespaces.
#[rstest]
#[case::an_exporter(json!([
    { "name": "kube2iam-exporter", "image": "example.com/exporter:1" },
    { "name": "main", "image": "example.com/iam:1", "command": ["kube2iam", "--namespace-restrictions"] },
]))]
#[case::another_image(json!([
    { "name": "a", "image": "example.com/kube2iam-init:1" },
    { "name": "b", "image": KUBE2IAM, "args": ["--namespace-restrictions"] },
]))]
#[case::a_target(json!([
    { "name": "proxy", "image": "example.com/proxy:1", "args": ["--target=kube2iam"] },
    { "name": "b", "image": KUBE2IAM, "args": ["--namespace-restrictions"] },
]))]
fn the_container_that_runs_the_program_is_read(#[case] containers: Value) {
    let manifest = manifest(KUBE2IAM, json!({}), json!({ "containers": containers }));
    let values = migrated(SourceSoftware::Kube2iam, &manifest).unwrap();
    assert_eq!(parsed(&values)["namespacePolicy"], "required", "{values}");
}

#[rstest]
#[case::by_name(json!([{ "name": "kube2iam-a", "image": "a" }, { "name": "kube2iam-b", "image": "b" }]))]
#[case::by_image(json!([{ "name": "a", "image": KUBE2IAM }, { "name": "b", "image": KUBE2IAM }]))]
#[case::by_command(json!([{ "name": "a", "command": ["kube2iam"] }, { "name": "b", "command": ["kube2iam", "--debug"] }]))]
fn ambiguous_containers_are_an_error(#[case] containers: Value) {
    let manifest = manifest(KUBE2IAM, json!({}), json!({ "containers": containers }));
    let error = migrated(SourceSoftware::Kube2iam, &manifest)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("may be kube2iam") && error.contains("give them after --"),
        "{error}"
    );
}

/// Makes the manifests of an agent and a server, or of two servers.
fn parts(parts: &[(&str, &str)]) -> String {
    let one = |(tag, words): &(&str, &str)| {
        let args: Vec<&str> = words.split(' ').collect();
        manifest(
            &format!("quay.io/uswitch/kiam:{tag}"),
            json!({ "args": args }),
            json!({}),
        )
    };
    parts.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// The server's version counts, because the server decides which roles a namespace may have.
#[rstest]
#[case::an_older_agent(&[("v3.6", "agent"), ("v4.2", "server")], None)]
#[case::a_much_older_agent(&[("v2.8", "agent"), ("v4.2", "server")], None)]
#[case::a_newer_agent(&[("v4.2", "agent"), ("v3.6", "server")], Some("search"))]
#[case::servers(&[("v3.6", "server"), ("v4.2", "server")], None)]
#[case::a_server_of_no_version(&[("v3.6", "agent"), ("master", "server")], None)]
#[case::an_agent_alone(&[("v3.6", "agent")], None)]
#[case::both_old(&[("v3.6", "agent"), ("v3.6", "server")], Some("search"))]
fn the_servers_version_counts_if_the_parts_differ(
    #[case] of: &[(&str, &str)],
    #[case] matching: Option<&str>,
) {
    let values = migrated(SourceSoftware::Kiam, &parts(of)).unwrap();
    assert_eq!(
        parsed(&values)["roles"]["permittedMatch"].as_str(),
        matching,
        "{values}"
    );
    let known: Vec<&str> = of
        .iter()
        .map(|(tag, _)| *tag)
        .filter(|tag| *tag != "master")
        .collect();
    let differ = known.iter().any(|tag| *tag != known[0]);
    assert_eq!(
        sentences(&values).contains("are of different versions"),
        differ,
        "{values}"
    );
}

#[test]
fn flags_of_kiam_in_a_file_are_an_error() {
    let error = migrated(
        SourceSoftware::Kiam,
        &parts(&[("v4.2", "server @/etc/kiam/flags")]),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("@/etc/kiam/flags: kiam reads more flags"),
        "{error}"
    );
}

/// Each case has two workloads of one installation, and the two values that the error names.
#[rstest]
#[case::servers(
    SourceSoftware::Kiam,
    "server --assume-role-arn=arn:aws:iam::123456789012:role/a",
    "server --assume-role-arn=arn:aws:iam::123456789012:role/b",
    ["has arn:aws:iam::123456789012:role/a", "has arn:aws:iam::123456789012:role/b"]
)]
#[case::a_looser_server(
    SourceSoftware::Kiam, "server --disable-strict-namespace-regexp", "server", ["has true", "has false"]
)]
#[case::routes(SourceSoftware::Kiam, "agent --allow-route-regexp=/a", "agent --allow-route-regexp=/b", ["has /a", "has /b"])]
#[case::default_role(SourceSoftware::Kube2iam, "--default-role=a", "--default-role=b", ["has a", "has b"])]
#[case::default_role_of_one(SourceSoftware::Kube2iam, "--default-role=a", "--debug", ["has a", "has none"])]
#[case::role_key(SourceSoftware::Kube2iam, "--iam-role-key=a", "--iam-role-key=b", ["has a", "has b"])]
#[case::restricted(SourceSoftware::Kube2iam, "--namespace-restrictions", "--debug", ["has true", "has false"])]
#[case::in_one(SourceSoftware::Kube2iam, "--default-role=a --default-role=b", "--default-role=a", ["has a", "has b"])]
fn different_values_are_an_error_that_names_both(
    #[case] from: SourceSoftware,
    #[case] one: &str,
    #[case] other: &str,
    #[case] named: [&str; 2],
) {
    let image = if from == SourceSoftware::Kiam {
        "kiam:v4.2"
    } else {
        KUBE2IAM
    };
    let of = |words: &str| {
        let args: Vec<&str> = words.split(' ').collect();
        manifest(image, json!({ "args": args }), json!({}))
    };
    let error = migrated(from, &format!("{}\n{}", of(one), of(other)))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("--") && named.iter().all(|value| error.contains(value)),
        "{error}"
    );
}

/// An agent and its server may differ in ports and certificates.
#[test]
fn flags_that_do_not_affect_pods_may_differ() {
    let of = [
        ("v4.2", "agent --cert=/a --level=info"),
        ("v4.2", "server --cert=/b --level=warn --region=eu-west-1"),
    ];
    assert!(migrated(SourceSoftware::Kiam, &parts(&of)).is_ok());
}
