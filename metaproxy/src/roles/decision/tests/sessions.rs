//! Tests the parameters of sessions.

use super::*;

#[test]
fn external_id_and_session_name_come_from_their_annotations() {
    let annotated = pod(&[
        ("role", "app"),
        ("external-id", "team/42"),
        ("session-name", "my session"),
    ]);
    let grant = granted(unasked().resolve_pod(&annotated, None, None));
    assert_eq!(grant.session.external_id.as_deref(), Some("team/42"));
    assert_eq!(grant.session.name.as_str(), "my-session");
    let malformed = pod(&[("role", "app"), ("external-id", "a b")]);
    let (name, reason) = refused(unasked().resolve_pod(&malformed, None, None));
    assert!(
        name == "app" && reason.contains("iam.amazonaws.com/external-id"),
        "{reason}"
    );
}

#[test]
fn pods_share_a_session_only_with_the_role_scope_and_equal_parameters() {
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
            .resolve_pod(&pod, None, None),
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
        tags: TagRules::On { cluster: None },
        ..shared
    };
    assert_ne!(
        shape(&tagged, "a", &[]),
        shape(&tagged, "b", &[]),
        "their tags differ"
    );
}

#[rstest]
#[case(1, false)]
#[case(2, true)]
#[case(1224, true)]
#[case(1225, false)]
fn external_ids_must_have_a_length_that_sts_accepts(#[case] length: usize, #[case] fits: bool) {
    let id = "i".repeat(length);
    let decision = unasked().resolve_pod(&pod(&[("role", "app"), ("external-id", &id)]), None, None);
    assert_eq!(matches!(decision, Decision::Granted(_)), fits, "{decision:?}");
}

#[test]
fn tag_values_must_have_a_length_and_characters_that_sts_accepts() {
    use crate::roles::is_tag_value;
    assert!(is_tag_value(&"v".repeat(256)) && is_tag_value("a b_.:/=+-@ä") && is_tag_value(""));
    assert!(!is_tag_value(&"v".repeat(257)));
    for odd in ["<", "a\nb", "\0", "#", "*"] {
        assert!(!is_tag_value(odd), "{odd:?}");
    }
}

#[test]
fn tags_identify_the_pod_of_a_session() {
    let sessions = SessionRules {
        tags: TagRules::On {
            cluster: Some("blue".to_owned()),
        },
        node: Some("node-1".to_owned()),
        ..SessionRules::default()
    };
    let rules = Rules {
        sessions,
        ..unasked()
    };
    let tags = granted(rules.resolve_pod(&pod(&[("role", "app")]), None, None))
        .session
        .tags;
    let want = [
        ("kubernetes-cluster-name", "blue"),
        ("kubernetes-namespace", "apps"),
        ("kubernetes-node-name", "node-1"),
        ("kubernetes-pod-name", "web"),
        ("kubernetes-service-account", "default"),
    ];
    let want = SessionTags {
        pairs: want.map(|(key, value)| (key, value.to_owned())).to_vec(),
        are_transitive: false,
    };
    assert_eq!(tags, want);
    // A manifest may have a name that the API server would refuse.
    let odd = Pod {
        service_account: "a<b>".to_owned(),
        ..pod(&[("role", "app")])
    };
    let (_, reason) = refused(rules.resolve_pod(&odd, None, None));
    assert!(
        reason.contains("kubernetes-service-account") && reason.contains("--session-tags"),
        "{reason}"
    );
}

/// IAM policies that were written for EKS Pod Identity must apply unchanged. EKS Pod Identity sets these keys and no
/// others, and all of them are transitive ("Grant Pods access to AWS resources based on tags", EKS User Guide).
#[test]
fn eks_tags_are_exactly_those_of_eks_pod_identity() {
    const CLUSTER: &str = "arn:aws:eks:eu-west-1:123456789012:cluster/blue";
    let rules = Rules {
        sessions: SessionRules {
            tags: TagRules::Eks(CLUSTER.parse().unwrap()),
            node: Some("node-1".to_owned()),
            ..SessionRules::default()
        },
        ..unasked()
    };
    let tags = granted(rules.resolve_pod(&pod(&[("role", "app")]), None, None))
        .session
        .tags;
    let want = [
        ("eks-cluster-arn", CLUSTER),
        ("eks-cluster-name", "blue"),
        ("kubernetes-namespace", "apps"),
        ("kubernetes-pod-name", "web"),
        ("kubernetes-pod-uid", UID),
        ("kubernetes-service-account", "default"),
    ];
    let want = SessionTags {
        pairs: want.map(|(key, value)| (key, value.to_owned())).to_vec(),
        are_transitive: true,
    };
    assert_eq!(tags, want);
}
