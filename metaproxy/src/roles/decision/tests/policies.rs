//! Tests the policies of namespaces.

use super::*;

#[rstest]
#[case::kiam(&[("permitted", "app")], true)]
#[case::kube2iam(&[("allowed-roles", r#"["app"]"#)], true)]
#[case::either_is_enough(&[("permitted", "other"), ("allowed-roles", r#"["app"]"#)], true)]
#[case::neither_allows(&[("permitted", "other"), ("allowed-roles", r#"["other"]"#)], false)]
#[case::says_nothing(&[], false)]
#[case::broken_permitted(&[("permitted", "("), ("allowed-roles", r#"["app"]"#)], false)]
#[case::broken_allowed_roles(&[("permitted", "app"), ("allowed-roles", "app")], false)]
fn a_required_policy(#[case] policy: &[(&str, &str)], #[case] allowed: bool) {
    let namespace = namespace(policy);
    let decision = rules().resolve_pod(&pod(&[("role", "app")]), Some(&namespace), None);
    assert_eq!(matches!(decision, Decision::Granted(_)), allowed, "{decision:?}");
    if !allowed {
        let (name, reason) = refused(decision);
        assert_eq!(name, "app");
        assert!(
            reason.contains("apps") && reason.contains("iam.amazonaws.com/"),
            "{reason}"
        );
    }
    let off = unasked();
    assert!(matches!(
        off.resolve_pod(&pod(&[("role", "app")]), Some(&namespace), None),
        Decision::Granted(_)
    ));
    assert!(matches!(
        off.resolve_pod(&pod(&[("role", "app")]), None, None),
        Decision::Granted(_)
    ));
}

#[test]
fn a_refusal_names_the_flag_and_the_annotations() {
    let (_, reason) = refused(rules().resolve_pod(&pod(&[("role", "app")]), Some(&namespace(&[])), None));
    for part in [
        "--namespace-policy=required",
        "iam.amazonaws.com/permitted",
        "iam.amazonaws.com/allowed-roles",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn an_annotated_default_role_is_exempt_from_the_policy() {
    let rules = Rules {
        default_role: default_role("fallback"),
        ..rules()
    };
    let arn = "ARN:aws:iam::123456789012:role/fallback";
    granted(rules.resolve_pod(&pod(&[("role", arn)]), None, None));
    let grant = granted(rules.resolve_pod(&pod(&[("role", "/fallback")]), None, None));
    assert!(
        matches!(&grant.reason, Reason::Granted { allowance, .. } if **allowance == Allowance::Exempt),
        "{}",
        grant.reason
    );
    let host = Pod {
        host_network: true,
        ..pod(&[("role", "fallback")])
    };
    refused(rules.resolve_pod(&host, Some(&namespace(&[])), None));
}

#[test]
fn names_wait_until_the_account_is_known_and_arns_do_not() {
    let unknown = Rules {
        base: None,
        default_role: default_role("fallback"),
        ..rules()
    };
    let waits = |decision: Decision| match decision {
        Decision::Wait(reason @ Reason::BaseUnknown { .. }) => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let all = namespace(&[("permitted", ".*")]);
    let sentence = waits(unknown.resolve_pod(&pod(&[("role", "app")]), Some(&all), None));
    assert!(sentence.contains("--base-role-arn"), "{sentence}");
    waits(unknown.resolve_pod(&pod(&[]), Some(&all), None));
    let arn = "arn:aws:iam::123456789012:role/app";
    granted(unknown.resolve_pod(&pod(&[("role", arn)]), Some(&all), None));
    // A name in the policy may turn out to be this role.
    waits(unknown.resolve_pod(
        &pod(&[("role", arn)]),
        Some(&namespace(&[("permitted", "app")])),
        None,
    ));
    refused(unknown.resolve_pod(&pod(&[("role", arn)]), Some(&namespace(&[])), None));
    refused(unknown.resolve_pod(&pod(&[("role", "a b")]), Some(&all), None));
}

/// Checks the situations in the documentation of kube2iam and kiam. Each case has the pod's role, the namespace's
/// annotations, and whether the pod gets the role: by default (policy required, globs, anchored patterns), with
/// regular expressions, and with search. If the policy is not checked, the pod always gets the role.
#[rstest]
#[case::kiam_name("app", &[("permitted", "app")], [true, true, true])]
#[case::kiam_everything("app", &[("permitted", ".*")], [true, true, true])]
#[case::kiam_nothing_said("app", &[], [false, false, false])]
#[case::kiam_empty("app", &[("permitted", "")], [false, false, false])]
#[case::kiam_3_raw_name("/team/app", &[("permitted", "/team/.*")], [true, true, true])]
#[case::kiam_4_arn("team/app", &[("permitted", "arn:aws:iam::123456789012:role/team/.*")], [true, true, true])]
#[case::kiam_unanchored_before_4("app-admin", &[("permitted", "app")], [false, false, true])]
#[case::kiam_alternation("evil-web", &[("permitted", "app|web")], [false, false, true])]
#[case::kube2iam_name("app", &[("allowed-roles", r#"["app"]"#)], [true, true, true])]
#[case::kube2iam_arn("app", &[("allowed-roles", r#"["arn:aws:iam::123456789012:role/app"]"#)], [true, true, true])]
#[case::kube2iam_role_by_arn("arn:aws:iam::123456789012:role/app", &[("allowed-roles", r#"["app"]"#)], [true, true, true])]
#[case::kube2iam_capital_arn("ARN:aws:iam::123456789012:role/app", &[("allowed-roles", r#"["app"]"#)], [true, true, true])]
#[case::kube2iam_glob("app-x", &[("allowed-roles", r#"["app-*"]"#)], [true, true, true])]
#[case::kube2iam_glob_is_no_regexp("app", &[("allowed-roles", r#"["a.p"]"#)], [false, true, false])]
#[case::kube2iam_glob_whole("app-x", &[("allowed-roles", r#"["app"]"#)], [false, true, false])]
#[case::kube2iam_from_the_beginning("my-app", &[("allowed-roles", r#"["app"]"#)], [false, false, false])]
#[case::kube2iam_path("team/sub/app", &[("allowed-roles", r#"["team/*"]"#)], [true, true, true])]
#[case::kube2iam_other_account("arn:aws:iam::999999999999:role/app", &[("allowed-roles", r#"["app", "web*"]"#)], [false, false, false])]
#[case::kube2iam_any_account("arn:aws:iam::999999999999:role/app", &[("allowed-roles", r#"["arn:aws:iam::*:role/app"]"#)], [true, false, true])]
#[case::kube2iam_empty_list("app", &[("allowed-roles", "[]")], [false, false, false])]
#[case::both_one_allows("app", &[("permitted", "x"), ("allowed-roles", r#"["app"]"#)], [true, true, true])]
#[case::china("arn:aws-cn:iam::123456789012:role/app", &[("permitted", "arn:aws-cn:.*")], [true, true, true])]
#[case::china_is_not_here("arn:aws-cn:iam::123456789012:role/app", &[("permitted", "app")], [false, false, true])]
fn policies_decide_as_in_kube2iam_and_kiam(
    #[case] role: &str,
    #[case] policy: &[(&str, &str)],
    #[case] want: [bool; 3],
) {
    let (pod, namespace) = (pod(&[("role", role)]), namespace(policy));
    let with = |allowed_roles_style, permitted_match| {
        let namespaces = NamespaceRules {
            allowed_roles_style,
            permitted_match,
            ..rules().namespaces
        };
        let decision = Rules {
            namespaces,
            ..rules()
        }
        .resolve_pod(&pod, Some(&namespace), None);
        matches!(decision, Decision::Granted(_))
    };
    let got = [
        with(AllowedRolesStyle::Glob, PermittedMatch::Anchored),
        with(AllowedRolesStyle::Regexp, PermittedMatch::Anchored),
        with(AllowedRolesStyle::Glob, PermittedMatch::Search),
    ];
    assert_eq!(got, want, "glob, regexp, search");
    granted(unasked().resolve_pod(&pod, Some(&namespace), None));
}

#[test]
fn a_refusal_quotes_the_patterns_that_did_not_match() {
    let many = serde_json::to_string(&["a", "b", "c", "d", "e", "f", "g\n"]).unwrap();
    let policy = namespace(&[("permitted", "web-.*"), ("allowed-roles", &many)]);
    let (_, reason) = refused(rules().resolve_pod(&pod(&[("role", "app")]), Some(&policy), None));
    assert!(
        reason.contains("its annotation iam.amazonaws.com/permitted (\"web-.*\") or its annotation iam.amazonaws.com/allowed-roles (\"a\", \"b\", \"c\", \"d\", \"e\", and 2 more)"),
        "{reason}"
    );
}
