use super::*;
use crate::pods::Annotations;
use crate::roles::policy::{AllowedRolesStyle, PermittedMatch};
use crate::roles::{CommonTags, SessionScope};
use proptest::prelude::*;
use rstest::rstest;
use std::sync::Arc;

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

fn rules() -> Rules {
    Rules {
        base: Some("arn:aws:iam::123456789012:role/".parse().unwrap()),
        default_role: None,
        keys: AnnotationKeys {
            role: "iam.amazonaws.com/role".to_owned(),
            external_id: "iam.amazonaws.com/external-id".to_owned(),
            session_name: "iam.amazonaws.com/session-name".to_owned(),
            permitted: "iam.amazonaws.com/permitted".to_owned(),
            allowed_roles: "iam.amazonaws.com/allowed-roles".to_owned(),
        },
        namespaces: NamespaceRules {
            required: true,
            ..NamespaceRules::default()
        },
        sessions: SessionRules::default(),
    }
}

/// As kube2iam has it by default.
fn unasked() -> Rules {
    Rules {
        namespaces: NamespaceRules::default(),
        ..rules()
    }
}

fn default_role(role: &str) -> Option<WrittenRole> {
    Some(role.parse().unwrap())
}

fn annotations(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(key, value)| (format!("iam.amazonaws.com/{key}"), (*value).to_owned()))
        .collect()
}

fn pod(pairs: &[(&str, &str)]) -> Pod {
    Pod {
        uid: UID.parse().unwrap(),
        static_uid: None,
        namespace: "apps".to_owned(),
        name: "web".to_owned(),
        service_account: "default".to_owned(),
        annotations: annotations(pairs),
        host_network: false,
        ips: Vec::new(),
        host_ports: Vec::new(),
        node: None,
    }
}

fn namespace(pairs: &[(&str, &str)]) -> Namespace {
    Namespace {
        name: "apps".to_owned(),
        annotations: annotations(pairs),
    }
}

fn granted(decision: Decision) -> Grant {
    match decision {
        Decision::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

fn refused(decision: Decision) -> (String, String) {
    match decision {
        Decision::Refused { name, reason } => (name, reason.to_string()),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn an_annotated_role_that_the_namespace_permits_is_granted() {
    let grant = granted(rules().resolve_pod(
        &pod(&[("role", "app")]),
        Some(&namespace(&[("permitted", "app")])),
    ));
    assert_eq!(grant.role.as_str(), "arn:aws:iam::123456789012:role/app");
    assert_eq!(grant.session.name.as_str(), "apps.web");
    assert_eq!(
        (grant.session.external_id, grant.session.tags),
        (None, Vec::new())
    );
    assert_eq!(grant.session.pod.as_ref(), Some(&grant.subject.uid));
    assert_eq!(
        grant.reason.to_string(),
        "role arn:aws:iam::123456789012:role/app from annotation iam.amazonaws.com/role of the pod; \"app\" in annotation \
         iam.amazonaws.com/permitted of namespace apps allows it"
    );
}

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
    let decision = rules().resolve_pod(&pod(&[("role", "app")]), Some(&namespace));
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
        off.resolve_pod(&pod(&[("role", "app")]), Some(&namespace)),
        Decision::Granted(_)
    ));
    assert!(matches!(
        off.resolve_pod(&pod(&[("role", "app")]), None),
        Decision::Granted(_)
    ));
}

#[test]
fn a_refusal_names_the_flag_and_the_annotations() {
    let (_, reason) = refused(rules().resolve_pod(&pod(&[("role", "app")]), Some(&namespace(&[]))));
    for part in [
        "--namespace-policy=required",
        "iam.amazonaws.com/permitted",
        "iam.amazonaws.com/allowed-roles",
    ] {
        assert!(reason.contains(part), "{reason}");
    }
}

#[test]
fn what_is_not_known_yet_is_waited_for_and_never_counts_as_none() {
    let nothing = Inventory::default();
    let uid: PodUid = UID.parse().unwrap();
    assert!(matches!(
        rules().resolve(&nothing, &uid),
        Decision::Wait(Reason::PodUnknown { .. })
    ));
    let inventory = Inventory::new([Arc::new(pod(&[("role", "app")]))], [], []);
    assert!(matches!(
        rules().resolve(&inventory, &uid),
        Decision::Wait(Reason::NamespaceUnknown { .. })
    ));
    let with_default = Rules {
        default_role: default_role("d"),
        ..rules()
    };
    assert!(
        matches!(with_default.resolve(&nothing, &uid), Decision::Wait(_)),
        "the default is for known pods only"
    );
}

#[rstest]
#[case::absent(&[])]
#[case::empty(&[("role", "")])]
#[case::blank(&[("role", " \n")])]
fn without_an_annotation_there_is_no_role_or_the_default(#[case] pairs: &[(&str, &str)]) {
    let none = rules().resolve_pod(&pod(pairs), None);
    assert!(
        matches!(none, Decision::NoRole(Reason::NoRole { .. })),
        "{none:?}"
    );
    let default_role = default_role("fallback");
    let grant = granted(
        Rules {
            default_role,
            ..rules()
        }
        .resolve_pod(&pod(pairs), None),
    );
    assert_eq!(
        grant.role.name(),
        "fallback",
        "exempt from the namespace's policy"
    );
}

#[test]
fn a_hostnetwork_pod_has_no_default_role_and_is_intercepted_for_any_role_that_it_asks_for() {
    let default_role = default_role("fallback");
    let rules = Rules {
        default_role,
        ..rules()
    };
    let host = |pairs: &[(&str, &str)]| Pod {
        host_network: true,
        ..pod(pairs)
    };
    assert!(matches!(rules.resolve_pod(&host(&[]), None), Decision::NoRole(_)));
    assert!(!rules.intercepts_host_pod(&host(&[])) && !rules.intercepts_host_pod(&host(&[("role", " ")])));
    for role in ["app", "a b"] {
        assert!(
            rules.intercepts_host_pod(&host(&[("role", role)])),
            "granted, refused or not known yet: {role}"
        );
    }
    assert!(!rules.intercepts_host_pod(&pod(&[("role", "app")])));
}

#[test]
fn a_refusal_never_falls_through_to_the_default_role() {
    let default_role = default_role("fallback");
    let rules = Rules {
        default_role,
        ..rules()
    };
    for role in ["app", "arn:aws:iam::1:role/x", "a b"] {
        refused(rules.resolve_pod(&pod(&[("role", role)]), Some(&namespace(&[]))));
    }
}

#[test]
fn a_malformed_role_is_refused_by_a_name_that_is_safe_to_show() {
    let (name, reason) =
        refused(rules().resolve_pod(&pod(&[("role", "arn:aws:iam::1:role/x<y>\r\nz")]), None));
    assert_eq!(name, "xyz");
    assert!(
        reason.contains("12 digits") && reason.contains("apps/web"),
        "{reason}"
    );
    assert!(!reason.contains('\n'), "log lines stay lines: {reason}");
    let (name, _) = refused(rules().resolve_pod(&pod(&[("role", "///")]), None));
    assert_eq!(name, "malformed-role");
}

#[test]
fn external_id_and_session_name_come_from_their_annotations() {
    let annotated = pod(&[
        ("role", "app"),
        ("external-id", "team/42"),
        ("session-name", "my session"),
    ]);
    let grant = granted(unasked().resolve_pod(&annotated, None));
    assert_eq!(grant.session.external_id.as_deref(), Some("team/42"));
    assert_eq!(grant.session.name.as_str(), "my-session");
    let malformed = pod(&[("role", "app"), ("external-id", "a b")]);
    let (name, reason) = refused(unasked().resolve_pod(&malformed, None));
    assert!(
        name == "app" && reason.contains("iam.amazonaws.com/external-id"),
        "{reason}"
    );
}

#[test]
fn pods_that_share_a_uid_get_nothing() {
    let inventory = Inventory::new(
        [Arc::new(pod(&[("role", "a")])), Arc::new(pod(&[("role", "b")]))],
        [],
        [],
    );
    let decision = rules().resolve(&inventory, &UID.parse().unwrap());
    assert!(matches!(decision, Decision::NoRole(Reason::Ambiguous { .. })));
}

/// The example that people start from.
#[test]
fn the_example_in_deploy_gives_the_roles_that_it_says() {
    let examples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let inventory = crate::pods::manifests::Manifests::open(&examples, None)
        .unwrap()
        .inventory();
    let role = |uid: &str| match rules().resolve(&inventory, &uid.parse().unwrap()) {
        Decision::Granted(grant) => Some((grant.role.to_string(), grant.session.external_id)),
        Decision::NoRole(_) => None,
        other => panic!("{other:?}"),
    };
    let web = "arn:aws:iam::123456789012:role/app-web".to_owned();
    let nightly = "arn:aws:iam::123456789012:role/reports/nightly".to_owned();
    assert_eq!(role("0f3c9a52-1d6e-4b7a-9c55-3a2f7f0e8d11"), Some((web, None)));
    assert_eq!(
        role("5b1de1c4-77aa-4a0f-8a52-6f1b6f0a9b02"),
        Some((nightly, Some("acme-42".to_owned())))
    );
    assert_eq!(role("9a44b2de-0c1f-4e7b-b8d3-2f6c1f0d7c33"), None);
    assert_eq!(inventory.pods().count(), 3);
}

#[test]
fn an_annotated_default_role_needs_no_leave_either() {
    let rules = Rules {
        default_role: default_role("fallback"),
        ..rules()
    };
    let grant = granted(rules.resolve_pod(&pod(&[("role", "fallback")]), None));
    assert!(
        grant
            .reason
            .to_string()
            .ends_with("the namespace is not asked about the default role"),
        "{}",
        grant.reason
    );
    let host = Pod {
        host_network: true,
        ..pod(&[("role", "fallback")])
    };
    refused(rules.resolve_pod(&host, Some(&namespace(&[]))));
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
    let sentence = waits(unknown.resolve_pod(&pod(&[("role", "app")]), Some(&all)));
    assert!(sentence.contains("--base-role-arn"), "{sentence}");
    waits(unknown.resolve_pod(&pod(&[]), Some(&all)));
    let arn = "arn:aws:iam::123456789012:role/app";
    granted(unknown.resolve_pod(&pod(&[("role", arn)]), Some(&all)));
    // A name in the policy may mean this very role.
    waits(unknown.resolve_pod(&pod(&[("role", arn)]), Some(&namespace(&[("permitted", "app")]))));
    refused(unknown.resolve_pod(&pod(&[("role", arn)]), Some(&namespace(&[]))));
    refused(unknown.resolve_pod(&pod(&[("role", "a b")]), Some(&all)));
}

/// What kube2iam and kiam do in the situations of their documentation: the pod's role, the namespace's annotations, and
/// whether the pod has the role by default (required, globs, anchored), with regexps, by search, and if it is not asked.
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
fn situations_of_kube2iam_and_kiam(
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
        .resolve_pod(&pod, Some(&namespace));
        matches!(decision, Decision::Granted(_))
    };
    let got = [
        with(AllowedRolesStyle::Glob, PermittedMatch::Anchored),
        with(AllowedRolesStyle::Regexp, PermittedMatch::Anchored),
        with(AllowedRolesStyle::Glob, PermittedMatch::Search),
    ];
    assert_eq!(got, want, "glob, regexp, search");
    granted(unasked().resolve_pod(&pod, Some(&namespace)));
}

#[test]
fn a_refusal_quotes_the_patterns_that_did_not_match() {
    let many = serde_json::to_string(&["a", "b", "c", "d", "e", "f", "g\n"]).unwrap();
    let policy = namespace(&[("permitted", "web-.*"), ("allowed-roles", &many)]);
    let (_, reason) = refused(rules().resolve_pod(&pod(&[("role", "app")]), Some(&policy)));
    assert!(
        reason.contains("its annotation iam.amazonaws.com/permitted (\"web-.*\") or its annotation iam.amazonaws.com/allowed-roles (\"a\", \"b\", \"c\", \"d\", \"e\", and 2 more)"),
        "{reason}"
    );
}

#[test]
fn annotation_keys_are_those_of_the_flags() {
    let rules = Rules {
        keys: AnnotationKeys {
            role: "example.com/r".to_owned(),
            external_id: "example.com/e".to_owned(),
            session_name: "example.com/s".to_owned(),
            permitted: "example.com/p".to_owned(),
            allowed_roles: "example.com/a".to_owned(),
        },
        ..rules()
    };
    let of = |pairs: &[(&str, &str)]| -> Annotations {
        pairs
            .iter()
            .map(|(key, value)| (format!("example.com/{key}"), (*value).to_owned()))
            .collect()
    };
    let pod = Pod {
        annotations: of(&[("r", "app"), ("e", "id-1"), ("s", "name")]),
        ..pod(&[("role", "no")])
    };
    for (key, value) in [("p", "app"), ("a", r#"["app"]"#)] {
        let namespace = Namespace {
            name: "apps".to_owned(),
            annotations: of(&[(key, value)]),
        };
        let grant = granted(rules.resolve_pod(&pod, Some(&namespace)));
        assert_eq!(grant.role.name(), "app");
        assert_eq!(grant.session.external_id.as_deref(), Some("id-1"));
        assert_eq!(grant.session.name.as_str(), "name");
    }
}

#[test]
fn pods_share_a_session_only_by_scope_and_where_nothing_differs() {
    let shape = |sessions: &SessionRules, name: &str, pairs: &[(&str, &str)]| {
        let pod = Pod {
            name: name.to_owned(),
            uid: format!("uid-of-{name}").parse().unwrap(),
            ..pod(&[&[("role", "app")], pairs].concat())
        };
        granted(
            Rules {
                sessions: sessions.clone(),
                ..unasked()
            }
            .resolve_pod(&pod, None),
        )
        .session
    };
    let own = SessionRules {
        node: Some("node-1".to_owned()),
        ..SessionRules::default()
    };
    assert_ne!(shape(&own, "a", &[]), shape(&own, "b", &[]));
    assert_eq!(shape(&own, "a", &[]).name.as_str(), "apps.a");

    let shared = SessionRules {
        scope: SessionScope::Role,
        ..own
    };
    assert_eq!(shape(&shared, "a", &[]), shape(&shared, "b", &[]));
    assert_eq!(shape(&shared, "a", &[]).name.as_str(), "metaproxy.node-1");
    let id = &[("external-id", "one")];
    assert_eq!(shape(&shared, "a", id), shape(&shared, "b", id));
    assert_ne!(
        shape(&shared, "a", id),
        shape(&shared, "b", &[("external-id", "two")])
    );
    assert_ne!(shape(&shared, "a", id), shape(&shared, "b", &[]));
    assert_ne!(
        shape(&shared, "a", &[("session-name", "x1")]),
        shape(&shared, "b", &[])
    );

    let tagged = SessionRules {
        tags: Some(CommonTags::default()),
        ..shared
    };
    assert_ne!(
        shape(&tagged, "a", &[]),
        shape(&tagged, "b", &[]),
        "their tags differ"
    );
}

#[test]
fn tags_say_whose_session_it_is() {
    let sessions = SessionRules {
        tags: Some(CommonTags {
            cluster: Some("blue".to_owned()),
        }),
        node: Some("node-1".to_owned()),
        ..SessionRules::default()
    };
    let rules = Rules {
        sessions,
        ..unasked()
    };
    let tags = granted(rules.resolve_pod(&pod(&[("role", "app")]), None))
        .session
        .tags;
    let want = [
        ("kubernetes-cluster-name", "blue"),
        ("kubernetes-namespace", "apps"),
        ("kubernetes-node-name", "node-1"),
        ("kubernetes-pod-name", "web"),
        ("kubernetes-service-account", "default"),
    ];
    assert_eq!(tags, want.map(|(key, value)| (key, value.to_owned())));
    // A name that the API server would not take, from a manifest.
    let odd = Pod {
        service_account: "a<b>".to_owned(),
        ..pod(&[("role", "app")])
    };
    let (_, reason) = refused(rules.resolve_pod(&odd, None));
    assert!(
        reason.contains("kubernetes-service-account") && reason.contains("--session-tags"),
        "{reason}"
    );
}

/// Whether the annotations allow the role, said another way.
fn is_allowed(role: &RoleArn, written: &str, permitted: &str, list: &str) -> bool {
    let name = role.as_str().strip_prefix("arn:aws:iam::123456789012:role/");
    let by_pattern = regex::bytes::Regex::new(permitted).is_ok_and(|pattern| {
        let forms = [Some(role.as_str()), Some(written.trim()), name];
        forms.into_iter().flatten().any(|form| {
            let whole = |found: regex::bytes::Match<'_>| found.start() == 0 && found.end() == form.len();
            // Leftmost-first may find a shorter one before the whole.
            pattern.find(form.as_bytes()).is_some_and(whole)
                || regex::bytes::Regex::new(&format!("\\A(?:{permitted})\\z"))
                    .is_ok_and(|all| all.is_match(form.as_bytes()))
        })
    });
    let entries: Vec<String> = serde_json::from_str(list).unwrap_or_default();
    let by_list = entries.iter().any(|entry| {
        let entry = entry.trim();
        let text = if entry.to_lowercase().starts_with("arn:") {
            Some(role.as_str())
        } else {
            name
        };
        text.is_some_and(|text| {
            matches_glob(entry.trim_start_matches(['/', '^']).as_bytes(), text.as_bytes())
        })
    });
    by_pattern || by_list
}

fn matches_glob(glob: &[u8], text: &[u8]) -> bool {
    match (glob.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if matches_glob(rest, text) => true,
        (Some((b'*', _)), Some((_, text))) => matches_glob(glob, text),
        (Some((b'?', rest)), Some((_, text))) => matches_glob(rest, text),
        (Some((one, rest)), Some((other, text))) => {
            one.eq_ignore_ascii_case(other) && matches_glob(rest, text)
        }
        _ => false,
    }
}

/// Any text, and texts that are nearly right.
fn any_text() -> impl Strategy<Value = String> {
    let nearly = prop::sample::select(vec![
        "app",
        "arn:aws:iam::123456789012:role/",
        "*",
        ".*",
        "[",
        "]",
        "\"",
        "\\",
        "(",
        ")",
        "|",
        "{9999}",
        "\0",
        "\n",
        "/",
        "",
    ]);
    prop_oneof![
        any::<String>(),
        prop::collection::vec(nearly, 0..6).prop_map(|words| words.concat())
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Whatever stands in annotations, a role is granted only where it is sound and permitted.
    #[test]
    fn annotations_of_any_bytes_stay_with_their_pod(
        role in any_text(), policy in any_text(), list in any_text(), id in any_text(), name in any_text(),
    ) {
        let strange = pod(&[("role", &role), ("external-id", &id), ("session-name", &name)]);
        let namespace = namespace(&[("permitted", &policy), ("allowed-roles", &list)]);
        let decision = rules().resolve_pod(&strange, Some(&namespace));
        let neighbour = rules().resolve_pod(&pod(&[]), Some(&namespace));
        prop_assert!(matches!(neighbour, Decision::NoRole(_)));
        match decision {
            Decision::Granted(grant) => {
                let written: WrittenRole = role.parse().unwrap();
                prop_assert_eq!(written.resolve(rules().base.as_ref()), Ok(Some(grant.role.clone())));
                prop_assert!(is_allowed(&grant.role, &role, &policy, &list), "{:?} {:?} {:?}", role, policy, list);
            }
            Decision::Refused { name, reason } => {
                prop_assert!(super::super::arn::is_name(&name));
                prop_assert!(!reason.to_string().contains('\n'));
            }
            Decision::NoRole(_) => prop_assert!(role.trim().is_empty()),
            Decision::Wait(_) => prop_assert!(false, "everything is known"),
        }
    }
}
