//! Checks whole manifests: no part is dropped without notice, and no setting becomes looser.

use rstest::rstest;
use serde_json::{Value, json};

use super::super::{MigrateError, SourceSoftware, values_for, workloads};

/// Makes a DaemonSet with an image, fields of its container and fields of its pod.
pub(super) fn manifest(image: &str, container: Value, pod: Value) -> String {
    let mut whole = json!({ "name": "main", "image": image });
    let merge = |into: &mut Value, more: Value| {
        let more = more.as_object().cloned().unwrap_or_default();
        into.as_object_mut().unwrap().extend(more);
    };
    merge(&mut whole, container);
    let mut spec = json!({ "containers": [whole] });
    merge(&mut spec, pod);
    let template = json!({ "metadata": { "annotations": { "prometheus.io/port": "8181" } }, "spec": spec });
    json!({ "kind": "DaemonSet", "metadata": { "name": "d" }, "spec": { "template": template } }).to_string()
}

pub(super) fn migrated(from: SourceSoftware, manifest: &str) -> Result<String, MigrateError> {
    values_for(from, &workloads(from, "m.yaml", manifest)?)
}

pub(super) fn parsed(values: &str) -> Value {
    serde_yaml_ng::from_str(values).unwrap()
}

pub(super) const KUBE2IAM: &str = "jtblin/kube2iam:0.11.2";

fn kube2iam(container: Value, pod: Value) -> String {
    migrated(SourceSoftware::Kube2iam, &manifest(KUBE2IAM, container, pod)).unwrap()
}

/// Joins the lines of comments, so that sentences can be compared.
pub(super) fn sentences(values: &str) -> String {
    let words = values.split_whitespace().filter(|word| *word != "#");
    words.collect::<Vec<_>>().join(" ")
}

#[rstest]
#[case::in_args(json!({ "args": ["sh", "-c", "exec kube2iam --node=$(NODE) --namespace-restrictions"] }))]
#[case::in_command(json!({ "command": ["/bin/sh", "-ec", "exec /bin/kube2iam --namespace-restrictions=true"] }))]
fn a_shell_wrapper_does_not_loosen_the_policy(#[case] container: Value) {
    let mut container = container;
    container["env"] =
        json!([{ "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } }]);
    assert_eq!(
        parsed(&kube2iam(container, json!({})))["namespacePolicy"],
        "required"
    );
}

#[rstest]
#[case::script("sh -c 'sleep 1; kube2iam --namespace-restrictions'", "more than one command")]
#[case::file("sh /start.sh", "its flags are not in the manifest")]
fn a_shell_wrapper_that_cannot_be_read_is_refused(#[case] command: &str, #[case] why: &str) {
    let command = shlex::split(command).unwrap();
    let manifest = manifest(KUBE2IAM, json!({ "command": command }), json!({}));
    let error = migrated(SourceSoftware::Kube2iam, &manifest)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(why) && error.contains("give them after --"),
        "{error}"
    );
}

/// Each part of the pod template becomes a value.
#[rstest]
#[case::region(json!({ "env": [{ "name": "AWS_REGION", "value": "eu-west-1" }] }), json!({}), "/sessions/region", json!("eu-west-1"))]
#[case::proxy(
    json!({ "env": [{ "name": "HTTPS_PROXY", "value": "http://proxy:3128" }] }), json!({}),
    "/extraEnv/0", json!({ "name": "HTTPS_PROXY", "value": "http://proxy:3128" })
)]
#[case::proxy_of_a_secret(
    json!({ "env": [{ "name": "HTTPS_PROXY", "valueFrom": { "secretKeyRef": { "name": "p", "key": "url" } } }] }), json!({}),
    "/extraEnv/0/valueFrom/secretKeyRef/name", json!("p")
)]
#[case::by_variable(
    json!({ "args": ["--base-role-arn=arn:aws:iam::$(ACCOUNT):role/"], "env": [{ "name": "ACCOUNT", "value": "123456789012" }] }),
    json!({}), "/roles/baseArn", json!("arn:aws:iam::123456789012:role/")
)]
#[case::affinity(json!({}), json!({ "affinity": { "nodeAffinity": { "x": "fargate" } } }), "/affinity/nodeAffinity/x", json!("fargate"))]
#[case::node_selector(json!({}), json!({ "nodeSelector": { "a": "b" } }), "/nodeSelector/a", json!("b"))]
#[case::pull_secrets(json!({}), json!({ "imagePullSecrets": [{ "name": "registry" }] }), "/image/pullSecrets", json!(["registry"]))]
#[case::any_format(
    json!({ "args": ["--namespace-restriction-format=RegExp"] }), json!({}), "/roles/allowedRolesStyle", json!("regexp")
)]
fn fields_with_a_value_in_the_chart_are_mapped(
    #[case] container: Value,
    #[case] pod: Value,
    #[case] pointer: &str,
    #[case] wanted: Value,
) {
    let values = kube2iam(container, pod);
    assert_eq!(parsed(&values).pointer(pointer), Some(&wanted), "{values}");
}

/// Each part that is left out is listed in the comments.
#[rstest]
#[case::keys(json!({ "env": [{ "name": "AWS_ACCESS_KEY_ID", "value": "AKIA" }] }), json!({}), "env AWS_ACCESS_KEY_ID: credentials of a user")]
#[case::secret_proxy(
    json!({ "env": [{ "name": "HTTP_PROXY", "value": "http://me:hidden@proxy" }] }), json!({}), "env HTTP_PROXY: its value holds a password"
)]
#[case::another_variable(json!({ "env": [{ "name": "FOO", "value": "hidden" }] }), json!({}), "env FOO: put it into extraEnv")]
#[case::region_elsewhere(
    json!({ "env": [{ "name": "AWS_REGION", "valueFrom": { "configMapKeyRef": { "name": "c", "key": "k" } } }] }), json!({}),
    "env AWS_REGION: its value is not in the manifest"
)]
#[case::env_from(json!({ "envFrom": [{ "configMapRef": { "name": "aws" } }] }), json!({}), "envFrom ConfigMap aws")]
#[case::tolerations(json!({}), json!({ "tolerations": [{ "key": "gpu" }] }), "tolerations: the chart's pods tolerate every taint")]
#[case::priority(json!({}), json!({ "priorityClassName": "low" }), "priorityClassName low: the chart's is system-node-critical")]
#[case::aliases(json!({}), json!({ "hostAliases": [{ "ip": "10.0.0.9" }] }), "hostAliases: the chart has no value for it")]
#[case::dns(json!({}), json!({ "dnsConfig": { "nameservers": ["10.0.0.2"] } }), "dnsConfig: the chart has no value for it")]
#[case::volume(json!({}), json!({ "volumes": [{ "name": "certs" }] }), "volume certs")]
#[case::init(json!({}), json!({ "initContainers": [{ "name": "rules" }] }), "init container rules")]
#[case::sidecar(json!({}), json!({ "containers": [{ "image": "kube2iam" }, { "name": "proxy" }] }), "container proxy")]
#[case::account(json!({}), json!({ "serviceAccountName": "iam" }), "serviceAccountName: the chart makes a service account of its own")]
#[case::pre_stop(json!({ "lifecycle": { "preStop": {} } }), json!({}), "lifecycle: there is no rule to remove")]
#[case::of_tomorrow(json!({ "resizePolicy": [{ "x": 1 }] }), json!({ "newField": 1 }), "newField, resizePolicy: not known to this program")]
#[case::annotation(json!({}), json!({}), "annotation prometheus.io/port: it named the old port")]
#[case::token(json!({ "args": ["--api-token=hidden"] }), json!({}), "--api-token=***: the agent uses its own service account")]
#[case::unknown_secret(json!({ "args": ["--some-secret", "hidden"] }), json!({}), "--some-secret=***: not known to this program")]
fn all_other_settings_are_listed_without_their_secrets(
    #[case] container: Value,
    #[case] pod: Value,
    #[case] wanted: &str,
) {
    let values = kube2iam(container, pod);
    assert!(sentences(&values).contains(wanted), "{wanted} in\n{values}");
    assert!(!values.contains("hidden"), "{values}");
}

#[rstest]
#[case::a_secret(json!({ "name": "BASE", "valueFrom": { "secretKeyRef": { "name": "s", "key": "k" } } }), "BASE comes from Secret s, key k")]
#[case::nowhere(json!({ "name": "OTHER", "value": "x" }), "BASE is not in the manifest's `env`")]
fn a_flag_whose_value_is_not_in_the_manifest_is_refused_by_name(#[case] variable: Value, #[case] why: &str) {
    let container = json!({ "args": ["--default-role=$(BASE)"], "env": [variable] });
    let error = migrated(
        SourceSoftware::Kube2iam,
        &manifest(KUBE2IAM, container, json!({})),
    )
    .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("--default-role=$(BASE)") && error.contains(why),
        "{error}"
    );
}

/// The files of Terraform and Helm have such placeholders before they are rendered.
#[rstest]
#[case(
    "--base-role-arn=${var.base_role_arn}",
    "${var.base_role_arn} is a placeholder"
)]
#[case("--default-role={{ .Values.role }}", "{{ .Values.role }} is a placeholder")]
fn a_placeholder_as_a_value_is_refused(#[case] flag: &str, #[case] why: &str) {
    let container = json!({ "args": ["--host-interface=${host_interface}", flag] });
    let error = migrated(
        SourceSoftware::Kube2iam,
        &manifest(KUBE2IAM, container, json!({})),
    )
    .unwrap_err();
    assert!(error.to_string().contains(why), "{error}");
    let region = json!({ "args": ["--host-interface=${x}"], "env": [{ "name": "AWS_REGION", "value": "${aws_region}" }] });
    let values = kube2iam(region, json!({ "nodeName": "new" }));
    assert!(
        sentences(&values).contains("env AWS_REGION: its value is not in the manifest"),
        "{values}"
    );
    assert!(
        sentences(&values).contains("nodeName: the chart's pods run on every node"),
        "{values}"
    );
}

/// Each of these roles would be an error at the agent's start, or would be another role than before.
#[rstest]
// jtblin/kube2iam#70 and #71: kube2iam put the value before the name of every role.
#[case::by_hand(
    SourceSoftware::Kube2iam,
    "--base-role-arn=arn:aws:iam::123456789012:role/<role-name>",
    "<role-name> is a placeholder"
)]
#[case::envsubst(
    SourceSoftware::Kube2iam,
    "--default-role=$ENVIRONMENT-overview-default-role",
    "$ENVIRONMENT is a placeholder"
)]
// helm/charts, stable/kube2iam/values.yaml: the account has ten digits.
#[case::account(
    SourceSoftware::Kube2iam,
    "--base-role-arn=arn:aws:iam::0123456789:role/",
    "the account of an ARN is 12 digits"
)]
#[case::no_role(
    SourceSoftware::Kube2iam,
    "--default-role=arn:aws:iam::123456789012:instance-profile/x",
    "it is not a role's ARN"
)]
// jtblin/kube2iam#195 asks for this behaviour of kiam.
#[case::a_part_of_names(
    SourceSoftware::Kiam,
    "server --role-base-arn=arn:aws:iam::123456789012:role/k8s/app-",
    "Write arn:aws:iam::123456789012:role/k8s/ in its place, and the names of roles in full (app-NAME)"
)]
// giantswarm/kiam-app; uswitch/kiam#271 and #459.
#[case::account_found_out(
    SourceSoftware::Kiam,
    "server --role-base-arn-autodetect --assume-role-arn=uun5a-IAMManager-Role",
    "arn:aws:iam::ACCOUNT:role/uun5a-IAMManager-Role takes the account of kiam's node"
)]
#[case::role_of_the_server(
    SourceSoftware::Kiam,
    "server --assume-role-arn=arn:aws:iam::1:role/x",
    "the account of an ARN is 12 digits"
)]
fn an_unusable_role_is_refused_with_the_name_of_its_flag(
    #[case] from: SourceSoftware,
    #[case] words: &str,
    #[case] why: &str,
) {
    let args: Vec<&str> = words.split(' ').collect();
    let image = if from == SourceSoftware::Kiam {
        "kiam:v4.2"
    } else {
        KUBE2IAM
    };
    let error = migrated(from, &manifest(image, json!({ "args": args }), json!({}))).unwrap_err();
    let error = error.to_string();
    let flag = args.last().unwrap().split('=').next().unwrap();
    assert!(error.starts_with(flag) && error.contains(why), "{error}");
}

#[rstest]
// uswitch/kiam#276: kiam completes a name by the prefix, in any order of the flags.
#[case::by_its_prefix(
    SourceSoftware::Kiam,
    "server --assume-role-arn=kiam-server --role-base-arn=arn:aws:iam::123456789012:role/",
    "/sessions/assumeRoleArn",
    json!("arn:aws:iam::123456789012:role/kiam-server")
)]
#[case::with_a_slash(
    SourceSoftware::Kiam,
    "server --role-base-arn=arn:aws:iam::123456789012:role/k8s/ --assume-role-arn=/kiam-server",
    "/sessions/assumeRoleArn",
    json!("arn:aws:iam::123456789012:role/k8s/kiam-server")
)]
#[case::in_full(
    SourceSoftware::Kiam,
    "server --role-base-arn-autodetect --assume-role-arn=arn:aws:iam::123456789012:role/kiam-server",
    "/sessions/assumeRoleArn",
    json!("arn:aws:iam::123456789012:role/kiam-server")
)]
// The charts write an unset value as an empty text.
#[case::of_nobody(
    SourceSoftware::Kiam,
    "server --role-base-arn= --assume-role-arn=",
    "/sessions/assumeRoleArn",
    Value::Null
)]
#[case::no_region(SourceSoftware::Kiam, "server --region=", "/sessions/region", Value::Null)]
// jtblin/kube2iam#84.
#[case::of_a_partition(
    SourceSoftware::Kube2iam,
    "--base-role-arn=arn:aws-us-gov:iam::916510818310:role/bosh-passed/",
    "/roles/baseArn",
    json!("arn:aws-us-gov:iam::916510818310:role/bosh-passed/")
)]
// jtblin/kube2iam#195: kube2iam appends a slash to the value, as metaproxy does.
#[case::without_a_slash(
    SourceSoftware::Kube2iam,
    "--base-role-arn=arn:aws:iam::123456789012:role/helloworld-",
    "/roles/baseArn",
    json!("arn:aws:iam::123456789012:role/helloworld-")
)]
fn a_valid_role_is_kept_with_its_meaning(
    #[case] from: SourceSoftware,
    #[case] words: &str,
    #[case] pointer: &str,
    #[case] want: Value,
) {
    let args: Vec<&str> = words.split(' ').collect();
    let image = if from == SourceSoftware::Kiam {
        "kiam:v4.2"
    } else {
        KUBE2IAM
    };
    let values = migrated(from, &manifest(image, json!({ "args": args }), json!({}))).unwrap();
    let found = parsed(&values).pointer(pointer).cloned();
    assert_eq!(found.unwrap_or_default(), want, "{values}");
}

/// jtblin/kube2iam#275: the manifest has the RBAC objects in a list, and the DaemonSet after it.
#[test]
fn a_workload_beside_a_list_of_other_objects_is_found() {
    let text = "apiVersion: v1\nitems:\n  - { apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: { name: \
                kube2iam } }\nkind: List\n---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: { name: kube2iam }\nspec: { \
                template: { spec: { containers: [{ image: 'jtblin/kube2iam:0.10.9', args: [--namespace-restrictions] }] } } }\n";
    let values = migrated(SourceSoftware::Kube2iam, text).unwrap();
    assert_eq!(parsed(&values)["namespacePolicy"], "required");
}

#[rstest]
#[case::before_a_rule("v2.1", "required", None, "kiam 2.1 had no rule for namespaces")]
#[case::before_4("v2.2", "required", Some("search"), "a pattern that is a part of every ARN")]
#[case::of_3(
    "v3.6",
    "required",
    Some("search"),
    "As kiam from 3.0, which passed through only what --allow-route-regexp allows"
)]
#[case::of_2("v2.8", "required", Some("search"), "kiam passed on every path")]
#[case::of_4(
    "v4.2",
    "required",
    None,
    "IMDSv1: kiam answered requests without a session token"
)]
#[case::of_no_version(
    "master",
    "required",
    None,
    "no tag of the server's image tells the version, so kiam 4 was assumed"
)]
fn differences_between_versions_of_kiam_are_noted(
    #[case] tag: &str,
    #[case] policy: &str,
    #[case] matching: Option<&str>,
    #[case] said: &str,
) {
    let manifest = manifest(
        &format!("quay.io/uswitch/kiam:{tag}"),
        json!({ "args": ["server"] }),
        json!({}),
    );
    let values = migrated(SourceSoftware::Kiam, &manifest).unwrap();
    let parsed = parsed(&values);
    assert_eq!(parsed["namespacePolicy"], policy);
    assert_eq!(parsed["roles"]["permittedMatch"].as_str(), matching);
    let passes_nothing = parsed["metadata"]["passThrough"] == "none";
    assert_eq!(passes_nothing, !tag.starts_with("v2"), "{values}");
    assert!(sentences(&values).contains(said), "{said} in\n{values}");
}

#[rstest]
#[case::before_globs("0.8.2", true)]
#[case::with_globs("0.10.2", false)]
#[case::with_formats("0.15.0", false)]
fn the_lack_of_globs_in_an_old_kube2iam_is_noted(#[case] tag: &str, #[case] is_said: bool) {
    let container = json!({ "args": ["--namespace-restrictions"] });
    let manifest = manifest(&format!("jtblin/kube2iam:{tag}"), container, json!({}));
    let values = sentences(&migrated(SourceSoftware::Kube2iam, &manifest).unwrap());
    assert_eq!(values.contains("compared the entries"), is_said, "{values}");
    assert!(values.contains("kube2iam answered requests without a session token (IMDSv1)"));
    assert!(values.contains("user-data among them"));
}

#[rstest]
#[case::unanchored("/latest/meta-data", json!([".*/latest/meta-data.*"]), "rewritten to match the same paths")]
// The documents of aws-node-termination-handler have this pattern.
#[case::of_a_handler(
    r"^\/latest\/meta-data\/(spot\/instance-action|instance-(id|type)|public-(hostname|ipv4))|\/latest\/dynamic\/instance-identity\/document$",
    json!([
        "/latest/meta-data/(spot/instance-action|instance-(id|type)|public-(hostname|ipv4)).*",
        ".*/latest/dynamic/instance-identity/document"
    ]),
    "rewritten to match the same paths"
)]
#[case::everything(".*", json!([".*"]), "`.*` passes all other metadata of the node through")]
// particuleio/terraform-kubernetes-addons, modules/aws/kiam.tf.
#[case::between_anchors(
    "^(/latest/dynamic/instance-identity/document|/latest/meta-data/placement/availability-zone)$",
    json!(["/latest/dynamic/instance-identity/document", "/latest/meta-data/placement/availability-zone"]),
    "rewritten to match the same paths"
)]
// envoyproxy/envoy#8325.
#[case::of_credentials(
    "/latest/meta-data/iam/security-credentials.*",
    Value::Null,
    "the agent answers this path itself, with the pod's own role"
)]
#[case::never(
    "/latest/user-data",
    Value::Null,
    "--allow-route-regexp=/latest/user-data: this path is never passed through to pods"
)]
#[case::nothing("^$", Value::Null, "it matches no path, which is kiam's default")]
fn kiams_routes_match_the_same_paths(#[case] regexp: &str, #[case] paths: Value, #[case] said: &str) {
    let container = json!({ "args": ["agent", format!("--allow-route-regexp={regexp}")] });
    let values = migrated(SourceSoftware::Kiam, &manifest("kiam:v4.2", container, json!({}))).unwrap();
    assert_eq!(parsed(&values)["metadata"]["allowPaths"], paths, "{values}");
    assert!(sentences(&values).contains(said), "{said} in\n{values}");
    assert!(
        sentences(&values).contains("only the agent's manifest was given"),
        "{values}"
    );
}

#[test]
fn a_static_pod_is_read_and_its_removal_is_explained() {
    let pod = json!({ "kind": "Pod", "metadata": { "name": "k" }, "spec": { "containers": [
        { "image": KUBE2IAM, "args": ["--namespace-restrictions"] },
    ] } });
    let values = migrated(SourceSoftware::Kube2iam, &pod.to_string()).unwrap();
    assert_eq!(parsed(&values)["namespacePolicy"], "required");
    assert!(
        sentences(&values).contains("taken out of the kubelet's staticPodPath"),
        "{values}"
    );
}
