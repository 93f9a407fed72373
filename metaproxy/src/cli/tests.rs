use super::*;
use crate::agent::{PodSource, Settings};
use crate::apiserver::KubeconfigSource;
use crate::roles::{SessionScope, TagRules};
use clap::error::ErrorKind;
use metaproxy_common::verdict::Family;
use rstest::rstest;
use std::path::PathBuf;
use std::time::Duration;

const CLUSTER: &str = "arn:aws:eks:eu-west-1:123456789012:cluster/blue";

fn run_args(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Box<RunArgs> {
    match Cli::from_words(words).unwrap().command {
        Command::Run(args) => args,
        other => panic!("{other:?}"),
    }
}

fn settings(flags: &[&str]) -> Result<Settings, UsageError> {
    let words = ["metaproxy", "run", "--manifests", "/pods"].iter().chain(flags);
    run_args(words).settings()
}

fn variable(flag: &str) -> String {
    format!("METAPROXY_{}", flag.replace('-', "_").to_uppercase())
}

#[test]
fn the_command_line_is_valid_and_every_flag_has_a_variable_and_a_heading() {
    Cli::command().debug_assert();
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    for flag in run.get_arguments().filter(|flag| flag.get_id() != "help") {
        let long = flag.get_long().unwrap();
        assert_eq!(flag.get_env().unwrap(), variable(long).as_str());
        assert!(
            flag.get_help_heading().is_some(),
            "--{long} stands under a heading"
        );
        assert!(flag.get_help().is_some(), "--{long} is explained");
    }
}

#[test]
fn every_command_flag_and_value_has_a_help_text() {
    let cli = Cli::command();
    let mut seen = 0;
    for command in cli.get_subcommands() {
        let name = command.get_name();
        assert!(command.get_about().is_some(), "{name} is explained");
        for argument in command
            .get_arguments()
            .filter(|argument| argument.get_id() != "help")
        {
            let id = argument.get_id();
            let help = argument
                .get_help()
                .unwrap_or_else(|| panic!("{name}: {id} is explained"));
            let help = help.to_string();
            assert!(
                help.starts_with(char::is_uppercase) && help.contains(' '),
                "{name}: {id}: {help}"
            );
            // A flag without a value has no values to explain.
            let takes_one = argument.get_action().takes_values();
            for value in argument.get_possible_values().iter().filter(|_| takes_one) {
                // The names of shells and formats need no explanation.
                let is_plain = ["shell", "output"].contains(&id.as_str());
                assert!(
                    is_plain || value.get_help().is_some(),
                    "{name}: {id}: {}",
                    value.get_name()
                );
            }
            seen += 1;
        }
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn the_help_of_every_command_has_an_exit_status_and_an_example() {
    let cli = Cli::command();
    for name in ["run", "guard", "explain", "doctor", "status", "migrate", "probe"] {
        let command = cli.find_subcommand(name).unwrap();
        let after = command
            .get_after_help()
            .unwrap_or_else(|| panic!("{name}"))
            .to_string();
        assert!(
            after.contains("Exit status: 0") && after.contains("64 on bad usage"),
            "{name}: {after}"
        );
        let (_, examples) = after
            .split_once("Examples:\n")
            .unwrap_or_else(|| panic!("{name}: {after}"));
        assert!(
            examples.contains(&format!("metaproxy {name}")),
            "{name}: {examples}"
        );
    }
}

/// Checks that messages and comments in the sources name only flags that exist. These are the flags of metaproxy and
/// the listed flags of other programs.
#[test]
fn sources_name_only_flags_that_exist() {
    const OTHERS: [&str; 15] = [
        "all-namespaces",
        "event-ttl",
        "http-endpoint",
        "http-put-response-hop-limit",
        "http-tokens",
        "instance-id",
        "iptables",
        "name",
        "namespace-restriction-format",
        "port",
        "query",
        "selector",
        "service-node-port-range",
        "help",
        "version",
    ];
    // These files contain flags of other programs, or CSS variables of a page.
    const OF_OTHERS: [&str; 4] = ["migrate", "leftovers", "node_ports.rs", "page.rs"];
    let cli = Cli::command();
    let flags: std::collections::BTreeSet<String> = cli
        .get_subcommands()
        .flat_map(|command| command.get_arguments().filter_map(|flag| flag.get_long()))
        .chain(OTHERS)
        .map(str::to_owned)
        .collect();
    let named = regex::Regex::new(r"(?:^|[^\w-])--([a-z][a-z0-9-]*)").unwrap();
    let mut directories = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if OF_OTHERS
                .iter()
                .any(|other| path.to_string_lossy().contains(other))
                || path.ends_with("tests.rs")
            {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            for found in named.captures_iter(&std::fs::read_to_string(&path).unwrap()) {
                assert!(flags.contains(&found[1]), "{}: --{}", path.display(), &found[1]);
                seen += 1;
            }
        }
    }
    assert!(seen > 150, "{seen}");
}

/// A new flag needs a value of the chart and a row in deploy/docs/configuration.md.
#[test]
fn every_flag_of_the_agent_has_a_chart_value_and_is_documented() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let read = |path| std::fs::read_to_string(root.join(path)).unwrap();
    let chart = read("deploy/helm/metaproxy/templates/daemonset.yaml");
    let document = read("deploy/docs/configuration.md");
    let run = Cli::command().find_subcommand("run").unwrap().clone();
    let flags: Vec<&str> = run.get_arguments().filter_map(|flag| flag.get_long()).collect();
    assert!(flags.len() > 30, "{flags:?}");
    for flag in flags {
        // The name must match as a whole word: --log is not --log-format.
        let is_in = |text: &str, name: &str, end: &[char]| {
            text.match_indices(name)
                .any(|(start, _)| text[start + name.len()..].starts_with(end))
        };
        let (name, variable) = (format!("--{flag}"), variable(flag));
        let is_in_chart = is_in(&chart, &name, &['=', '"', '\n', ' '])
            || is_in(&chart, &format!("- name: {variable}"), &['\n']);
        assert!(is_in_chart, "{name} is in no template");
        assert!(
            is_in(&document, &name, &[' ', '`', '\\']),
            "{name} is not in deploy/docs/configuration.md"
        );
    }
}

/// `kubectl exec … doctor` must read the configuration of the agent in that container.
#[test]
fn doctor_accepts_every_flag_of_the_agent_and_the_chart_sets_the_variables_that_it_reads() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let chart = std::fs::read_to_string(root.join("deploy/helm/metaproxy/templates/daemonset.yaml")).unwrap();
    let flags = |name: &str| -> Vec<String> {
        let command = Cli::command().find_subcommand(name).unwrap().clone();
        let flags = command.get_arguments().filter_map(|flag| flag.get_long());
        flags.map(str::to_owned).collect()
    };
    let (run, doctor) = (flags("run"), flags("doctor"));
    assert!(run.len() > 30);
    for flag in &run {
        assert!(doctor.contains(flag), "doctor does not take --{flag}");
    }
    let own: Vec<&String> = doctor.iter().filter(|flag| !run.contains(flag)).collect();
    assert_eq!(own, ["fix-leftovers", "role", "guard-placement", "output"]);
    for flag in [
        "node-name",
        "namespace-policy",
        "web-identity",
        "assume-role-arn",
        "region",
        "sts-endpoint",
        "imds-endpoint",
        "listen-port",
        "cgroup",
        "cgroup-root",
        "kubeconfig",
        "manifests",
        "startup-taint",
        "admin-address",
        "runtime-dir",
        "guard-placement",
        "token-policy",
    ] {
        let variable = variable(flag);
        assert!(chart.contains(&format!("- name: {variable}\n")), "{variable}");
    }
}

#[rstest]
#[case(&["--manifests", "/p"], None)]
#[case(&["--kubeconfig", "/k"], Some(KubeconfigSource::File(PathBuf::from("/k"))))]
fn doctor_uses_the_same_api_server_as_the_agent(
    #[case] flags: &[&str],
    #[case] want: Option<KubeconfigSource>,
) {
    let Command::Doctor(args) = Cli::from_words(["metaproxy", "doctor"].iter().chain(flags))
        .unwrap()
        .command
    else {
        panic!("another command");
    };
    assert_eq!(args.examination().unwrap().kubeconfig, want);
}

#[test]
fn flags_have_the_documented_defaults() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.listen_port, 0);
    assert_eq!(settings.sts.duration, Duration::from_secs(3600));
    assert_eq!(settings.imds.to_string(), "http://169.254.169.254");
    assert!(settings.rules.namespaces.required);
    assert_eq!(settings.rules.base, None, "found out");
    assert_eq!(settings.rules.sessions.scope, SessionScope::Pod);
    assert_eq!(settings.rules.sessions.tags, TagRules::Off);
    assert_eq!(settings.imds_v1, crate::imds::ImdsV1Policy::Unknown, "found out");
    assert_eq!(settings.rules.keys.role, "iam.amazonaws.com/role");
    let is_passed = |path: &str| matches!(settings.paths.classify(path), crate::imds::path::Route::Node(_));
    assert!(is_passed("/latest/meta-data/public-ipv4") && is_passed("/latest/meta-data/tags/instance"));
    assert_eq!(settings.runtime_dir, PathBuf::from("/run/metaproxy"));
}

#[rstest]
#[case(&["--base-role-arn", "arn:aws:iam::12:role/"], "--base-role-arn \"arn:aws:iam::12:role/\": the account of an ARN is 12 digits")]
#[case(&["--assume-role-arn", "server"], "--assume-role-arn \"server\": it is not a role's ARN")]
#[case(&["--allow-path", "("], "--allow-path: not a regular expression: ")]
#[case(&["--allow-path", "latest/meta-data/mac"], "--allow-path: \"latest/meta-data/mac\" matches no path")]
#[case(&["--allow-path", "mac", "--allow-path", "iam/.*"], "--allow-path: \"iam/.*\" matches only what is never passed through")]
#[case(&["--cluster-name", "a<b"], "--cluster-name \"a<b\": not the value of a session tag")]
#[case(&["--session-tags", "eks"], "--session-tags eks: EKS Pod Identity's tags hold the ARN of the cluster; give it with --cluster-arn")]
#[case(&["--session-tags", "eks", "--cluster-name", "blue"], "--session-tags eks: EKS Pod Identity's tags hold the ARN")]
#[case(&["--cluster-arn", "blue"], "--cluster-arn \"blue\": not the ARN of an EKS cluster, which looks like arn:aws:eks:")]
#[case(&["--cluster-arn", CLUSTER, "--cluster-name", "red"], "--cluster-name \"red\": --cluster-arn is that of cluster \"blue\"")]
#[case(&["--imds-endpoint", "https://169.254.169.254"], "--imds-endpoint \"https://169.254.169.254\": not a URL such as")]
#[case(&["--default-role", "a b"], "--default-role \"a b\": a role's name is")]
#[case(&["--listen-address", "127.0.0.1"], "--listen-address 127.0.0.1: pods cannot reach")]
#[case(&["--listen-address", "0.0.0.0"], "--listen-address 0.0.0.0: pods cannot reach")]
#[case(&["--listen-address", "169.254.169.254"], "--listen-address 169.254.169.254: pods cannot reach")]
#[case(&["--listen-address", "255.255.255.255"], "--listen-address 255.255.255.255: pods cannot reach")]
#[case(&["--region", "evil.com/"], "--region \"evil.com/\": not a region")]
#[case(&["--region", ""], "--region \"\": not a region")]
#[case(&["--allow-path", ""], "--allow-path: \"\" matches no path")]
#[case(&["--base-role-arn", "arn:aws:iam::123456789012:role/*"], "--base-role-arn \"arn:aws:iam::123456789012:role/*\": a * in it")]
#[case(&["--permitted-annotation", "x", "--allowed-roles-annotation", "x"], "--permitted-annotation and --allowed-roles-annotation are both \"x\"")]
#[case(&["--external-id-annotation", "iam.amazonaws.com/role"], "--role-annotation and --external-id-annotation are both")]
#[case(&["--role-annotation", "iam.amazonaws.com/session-name"], "--role-annotation and --session-name-annotation are both")]
#[case(&["--listen-address", "10.0.0.1,10.0.0.1"], "--listen-address 10.0.0.1 is given twice")]
#[case(&["--session-duration", "2h"], "--session-duration 2h: STS takes 15m to 1h")]
#[case(&["--session-duration", "1m"], "--session-duration 1m: STS takes 15m to 1h")]
#[case(&["--sts-endpoint", "sts.amazonaws.com"], "--sts-endpoint \"sts.amazonaws.com\": not a URL")]
#[case(&["--imds-endpoint", "http://"], "--imds-endpoint \"http://\": not a URL such as")]
#[case(&["--web-identity", "on"], "--web-identity on: tokens of service accounts come from the API server")]
#[case(&["--role-annotation", "a/b/c"], "--role-annotation \"a/b/c\": not a key")]
fn errors_name_malformed_and_contradictory_flags(#[case] flags: &[&str], #[case] want: &str) {
    let error = settings(flags).unwrap_err().to_string();
    assert!(error.starts_with(want), "{error}");
}

#[rstest]
#[case("--sts-endpoint", "http://user:SECRET@sts.example")]
#[case("--sts-endpoint", "user:SECRET@sts.example")]
#[case("--sts-endpoint", "https:/user:SECRET@sts.example")]
#[case("--imds-endpoint", "http://user:SECRET@169.254.169.254")]
#[case("--imds-endpoint", "SECRET@169.254.169.254")]
fn a_password_in_a_url_is_refused_and_not_shown(#[case] flag: &str, #[case] url: &str) {
    let run = settings(&[flag, url]).unwrap_err();
    let words = ["metaproxy", "doctor", "--manifests", "/p", flag, url];
    let Command::Doctor(doctor) = Cli::from_words(words).unwrap().command else {
        panic!("another command");
    };
    for error in [run, doctor.examination().unwrap_err()] {
        let said = format!("{error} {error:?}");
        assert!(
            said.starts_with(flag) && said.contains("has a user or a password"),
            "{said}"
        );
        assert!(!said.contains("SECRET"), "{said}");
    }
}

#[rstest]
#[case(Some("10.96.0.1"), Family::V4)]
#[case(Some("fd00:10:96::1"), Family::V6)]
#[case(Some("api.example.internal"), Family::V4)]
#[case(None, Family::V4)]
fn the_assumed_family_of_pods_is_the_family_of_the_services(
    #[case] api_server: Option<&str>,
    #[case] family: Family,
) {
    assert_eq!(usage::services_family(api_server), family);
}

#[rstest]
#[case(&["--session-tags", "on", "--cluster-arn", CLUSTER], TagRules::On { cluster: Some("blue".to_owned()) })]
#[case(&["--session-tags", "on", "--cluster-name", "a b"], TagRules::On { cluster: Some("a b".to_owned()) })]
#[case(&["--session-tags", "on"], TagRules::On { cluster: None })]
#[case(&["--session-tags", "eks", "--cluster-arn", CLUSTER], TagRules::Eks(CLUSTER.parse().unwrap()))]
#[case(&["--session-tags", "eks", "--cluster-arn", CLUSTER, "--cluster-name", "blue"], TagRules::Eks(CLUSTER.parse().unwrap()))]
#[case(&["--cluster-arn", CLUSTER], TagRules::Off)]
fn the_cluster_name_comes_from_the_cluster_arn(#[case] flags: &[&str], #[case] want: TagRules) {
    assert_eq!(settings(flags).unwrap().rules.sessions.tags, want);
}

#[rstest]
#[case(&["run", "--manifests", "/p", "--kubeconfig", "/k"], ErrorKind::ArgumentConflict)]
#[case(&["run", "--manifests", "/p", "--no-such-flag"], ErrorKind::UnknownArgument)]
#[case(&["run", "--manifests", "/p", "--startup-taint", "a/b"], ErrorKind::ArgumentConflict)]
#[case(&["run", "--admin-address", "9808"], ErrorKind::ValueValidation)]
#[case(&["probe"], ErrorKind::MissingRequiredArgument)]
#[case(&["run", "--listen-port", "70000"], ErrorKind::ValueValidation)]
#[case(&["run", "--namespace-policy", "maybe"], ErrorKind::InvalidValue)]
#[case(&["run", "--session-duration", "soon"], ErrorKind::ValueValidation)]
#[case(&["walk"], ErrorKind::InvalidSubcommand)]
#[case(&[], ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)]
fn invalid_arguments_are_usage_errors(#[case] words: &[&str], #[case] want: ErrorKind) {
    let error = Cli::from_words(["metaproxy"].iter().chain(words)).unwrap_err();
    assert_eq!(error.kind(), want);
}

#[rstest]
#[case(&["--kubeconfig", "/k"], "--node-name is not given: ")]
#[case(&["--kubeconfig", "/k", "--node-name", "a,spec.nodeName=b"], "--node-name \"a,spec.nodeName=b\": not the name")]
#[case(&["--kubeconfig", "/k", "--node-name", "n", "--startup-taint", "a b"], "--startup-taint \"a b\": not a key")]
fn errors_name_missing_and_malformed_flags_of_the_api_server(#[case] flags: &[&str], #[case] want: &str) {
    let error = run_args(["metaproxy", "run"].iter().chain(flags))
        .settings()
        .unwrap_err()
        .to_string();
    assert!(error.starts_with(want), "{error}");
}

#[test]
fn pods_come_from_the_api_server_of_the_kubeconfig() {
    let flags = [
        "--kubeconfig",
        "/k",
        "--node-name",
        "ip-10-0-0-1.eu-west-1.compute.internal",
    ];
    let settings = run_args(["metaproxy", "run"].iter().chain(&flags))
        .settings()
        .unwrap();
    let want = PodSource::ApiServer {
        kubeconfig: KubeconfigSource::File(PathBuf::from("/k")),
        node: flags[3].to_owned(),
        startup_taint: None,
    };
    assert_eq!(settings.pods, want);
    assert_eq!(settings.rules.kept().namespaces.len(), 2);
    assert!(settings.rules.kept().service_accounts.is_empty());
}

#[test]
fn without_a_source_of_pods_the_error_names_the_missing_flag() {
    assert_eq!(
        run_args(["metaproxy", "run"]).settings().unwrap_err(),
        UsageError::NoSource
    );
}
