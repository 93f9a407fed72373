//! Tests of how the binary reads its arguments and its environment. They need neither root nor eBPF.

use std::process::Command;

use rstest::rstest;

/// Calls `run` with these environment variables. Returns its standard error and its exit status.
fn run(environment: &[(&str, &str)]) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
        .arg("run")
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (String::from_utf8(output.stderr).unwrap(), output.status.code())
}

#[test]
fn environment_variables_are_used_unless_they_are_empty() {
    let (said, status) = run(&[
        ("METAPROXY_MANIFESTS", "/pods"),
        ("METAPROXY_DEFAULT_ROLE", "a b"),
    ]);
    assert!(said.contains("--default-role \"a b\""), "{said}");
    assert_eq!(status, Some(64));
    // Charts set such empty variables for values that are not given.
    let empty = [
        "METAPROXY_BASE_ROLE_ARN",
        "METAPROXY_DEFAULT_ROLE",
        "METAPROXY_LISTEN_ADDRESS",
        "METAPROXY_LISTEN_PORT",
        "METAPROXY_ALLOW_PATH",
        "METAPROXY_SESSION_TAGS",
        "METAPROXY_CLUSTER_NAME",
        "METAPROXY_CLUSTER_ARN",
        "METAPROXY_MANIFESTS",
    ];
    let (said, status) = run(&empty.map(|name| (name, "")));
    assert!(said.contains("no source of pods"), "{said}");
    assert_eq!(status, Some(64));
}

/// Runs the binary with these arguments and this standard input. Returns its standard output, exit status and
/// standard error.
fn printed(words: &[&str], input: &str) -> (String, Option<i32>, String) {
    use std::io::Write as _;
    let mut child = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
        .args(words)
        .env_clear()
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), output.status.code(), text(output.stderr))
}

#[test]
fn completions_and_the_manual_page_contain_every_command() {
    for words in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
        let (text, status, _) = printed(words, "");
        assert_eq!(status, Some(0), "{words:?}");
        for command in ["explain", "doctor", "status", "migrate", "guard"] {
            assert!(text.to_lowercase().contains(command), "{command} in {words:?}");
        }
    }
    assert!(printed(&["man"], "").0.contains("fix\\-leftovers"));
}

#[test]
fn manifests_from_standard_input_are_explained_and_migrated() {
    let pods = "kind: Namespace\nmetadata: { name: apps, annotations: { iam.amazonaws.com/permitted: 'web-*' } }\n---\n\
                kind: Pod\nmetadata: { name: web, annotations: { iam.amazonaws.com/role: web-reader } }\n";
    let base = ["--base-role-arn", "arn:aws:iam::123456789012:role/"];
    let words = ["explain", "--manifests", "-", "--namespace", "apps"];
    let (text, status, _) = printed(&[&words[..], &base].concat(), pods);
    assert_eq!(status, Some(1));
    assert!(text.contains("did you mean `web-.*`?"), "{text}");
    let (text, status, _) = printed(&[&words[..], &base].concat(), &pods.replace("web-*", "web-.*"));
    assert_eq!(status, Some(0), "{text}");
    for command in ["explain", "status", "doctor", "migrate"] {
        assert!(
            printed(&[command, "--help"], "").0.contains("Exit status: 0"),
            "{command}"
        );
    }
    let json = |more: &[&str], pods: &str| -> serde_json::Value {
        let text = printed(&[&words[..], &base, &["--output", "json"], more].concat(), pods).0;
        serde_json::from_str(&text).unwrap()
    };
    assert_eq!(json(&["web"], pods)["pod"], "apps/web", "one, as it is");
    assert_eq!(json(&[], pods)[0]["pod"], "apps/web", "all that there are");
    let of_the_same_name = format!(
        "{pods}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: web }}\nspec: {{ template: {{ spec: {{}} }} }}\n"
    );
    let both = json(&["web"], &of_the_same_name);
    let verdicts: Vec<_> = both
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["verdict"])
        .collect();
    assert_eq!(verdicts, ["refused", "no-role"], "{both:#}");
    let broken = pods.replace("metadata: { name: web,", "metadata: x # {");
    let (_, status, said) = printed(&[&words[..], &base].concat(), &broken);
    assert!(status == Some(69) && said.contains("metadata"), "{said}");

    let (text, status, _) = printed(
        &["migrate", "kube2iam", "--", "--default-role=d", "--iptables"],
        "",
    );
    assert_eq!(status, Some(0));
    assert!(
        text.contains("default: \"d\"") && text.contains("--iptables=true: metaproxy makes no rules"),
        "{text}"
    );
    let (_, status, said) = printed(&["migrate", "kiam"], "kind: DaemonSet\n");
    assert_eq!(status, Some(69));
    assert!(said.contains("no workload of kiam found"), "{said}");
}

const BASE: [&str; 2] = ["--base-role-arn", "arn:aws:iam::123456789012:role/"];

/// The agent's variables are set, as in the chart's container.
#[rstest]
#[case::nothing(&["explain"], "--all shows all of them")]
#[case::three_parts(&["explain", "a/b/c"], "\"a/b/c\": a pod is named as NAMESPACE/POD")]
#[case::no_namespace(&["explain", "/web"], "\"/web\": a pod is named as NAMESPACE/POD")]
#[case::no_name(&["explain", "apps/"], "\"apps/\": a pod is named as NAMESPACE/POD")]
fn a_pod_without_namespace_or_name_is_bad_usage_with_a_hint(#[case] words: &[&str], #[case] hint: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
        .args(words)
        .env_clear()
        .env("METAPROXY_RUNTIME_DIR", "/nosuch")
        .env("METAPROXY_BASE_ROLE_ARN", BASE[1])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{said}");
    assert!(said.contains(hint), "{said}");
}

#[test]
fn the_flag_all_shows_all_manifests_as_a_table() {
    let pods = "kind: Pod\nmetadata: { name: web, annotations: { iam.amazonaws.com/role: web } }\nspec: { containers: [] }\n";
    let words = [
        "explain",
        "--manifests",
        "-",
        "--all",
        "--namespace-policy",
        "off",
    ];
    let (text, status, _) = printed(&[&words[..], &BASE].concat(), pods);
    assert_eq!(status, Some(0), "{text}");
    let mut lines = text.lines();
    assert!(
        lines.next().unwrap().starts_with("POD          VERDICT  ROLE"),
        "{text}"
    );
    assert!(
        lines
            .next()
            .unwrap()
            .starts_with("default/web  granted  arn:aws:iam::123456789012:role/web"),
        "{text}"
    );
    assert_eq!(lines.next(), None);
}

#[test]
fn skipped_objects_are_named_on_standard_error_and_fail_the_check_if_they_have_a_role() {
    let pod = "kind: Pod\nmetadata: { name: web }\nspec: { containers: [] }\n";
    let explained = |more: &str| {
        let words = ["explain", "--manifests", "-", "--output", "json"];
        printed(&[&words[..], &BASE].concat(), &format!("{pod}---\n{more}"))
    };
    let (text, status, said) = explained("kind: Widget\nmetadata: { name: w }\n");
    assert_eq!(status, Some(0), "{text}");
    assert!(said.contains("note: -:4: Widget w was skipped"), "{said}");
    let (text, status, said) =
        explained("kind: Widget\nspec: { podAnnotations: { iam.amazonaws.com/role: app } }\n");
    assert_eq!(status, Some(1), "{text}");
    assert!(
        said.contains("error: -:4: Widget has iam.amazonaws.com/role"),
        "{said}"
    );
    let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        parsed[0]["pod"], "default/web",
        "standard output is left to programs"
    );
}

#[rstest]
#[case(&["explain", "--manifests", "/nosuch"])]
#[case(&["run", "--manifests", "/nosuch"])]
#[case(&["migrate", "kube2iam", "/nosuch"])]
fn a_missing_file_is_named_with_its_cause_once(#[case] words: &[&str]) {
    let (_, status, said) = printed(
        &[words, if words[0] == "migrate" { &[] } else { &BASE }].concat(),
        "",
    );
    assert_ne!(status, Some(0));
    assert!(said.contains("/nosuch"), "{said}");
    assert_eq!(said.matches("No such file or directory").count(), 1, "{said}");
}

/// The agent's variables are set, as in the chart's container. They must not affect the check of the values.
#[test]
fn migrated_values_are_checked_without_the_environment() {
    let output = Command::new(env!("CARGO_BIN_EXE_metaproxy"))
        .args(["migrate", "kube2iam", "--", "--default-role=d"])
        .env("METAPROXY_KUBECONFIG", "/x")
        .env("METAPROXY_WEB_IDENTITY", "on")
        .env("METAPROXY_MODE", "observe")
        .env("METAPROXY_GUARD", "connect")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn a_manifest_that_cannot_be_migrated_is_refused_with_advice() {
    let wrapped = "kind: DaemonSet\nspec: { template: { spec: { containers: [{ image: kube2iam, args: [sh, -c, 'sleep 1; kube2iam'] }] } } }\n";
    let (text, status, said) = printed(&["migrate", "kube2iam"], wrapped);
    assert_eq!((status, text.as_str()), (Some(69), ""), "{said}");
    assert!(
        said.contains("-: the flags of DaemonSet") && said.contains("give them after --"),
        "{said}"
    );
    let (_, status, said) = printed(&["migrate", "kube2iam"], "extraArgs: { default-role: d }\n");
    assert_eq!(status, Some(69));
    assert!(said.contains("helm template RELEASE CHART"), "{said}");
}
