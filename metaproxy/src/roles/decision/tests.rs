mod own;
mod policies;
mod sessions;
mod strange;
mod web_identities;

use super::*;
use crate::pods::{Annotations, Mirror};
use crate::roles::policy::{AllowedRolesStyle, PermittedMatch};
use crate::roles::{SessionScope, SessionTags, TagRules};
use rstest::rstest;
use std::sync::Arc;

const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";

fn rules() -> Rules {
    Rules {
        base: Some("arn:aws:iam::123456789012:role/".parse().unwrap()),
        default_role: None,
        keys: AnnotationKeys::default(),
        namespaces: NamespaceRules {
            required: true,
            ..NamespaceRules::default()
        },
        sessions: SessionRules::default(),
        web_identity: false,
        firewall: false,
        enforce_host_network: false,
        own: OwnRoles::default(),
    }
}

/// Returns rules that do not check the policies of namespaces, which is kube2iam's default.
pub(crate) fn unasked() -> Rules {
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
        mirror: Mirror::No,
        namespace: "apps".to_owned(),
        name: "web".to_owned(),
        service_account: "default".to_owned(),
        annotations: annotations(pairs),
        labels: Annotations::new(),
        other_credentials: Default::default(),
        host_network: false,
        ips: Vec::new(),
        host_ports: Vec::new(),
        node: None,
        finished: false,
        running: false,
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
        None,
    ));
    assert_eq!(grant.role.as_str(), "arn:aws:iam::123456789012:role/app");
    assert_eq!(grant.session.name.as_str(), "apps.web");
    assert_eq!(
        (grant.session.external_id, grant.session.tags),
        (None, SessionTags::default())
    );
    assert_eq!(grant.session.pod.as_ref(), Some(&grant.subject.uid));
    assert_eq!(
        grant.reason.to_string(),
        "role arn:aws:iam::123456789012:role/app from annotation iam.amazonaws.com/role of the pod; \"app\" in annotation \
         iam.amazonaws.com/permitted of namespace apps allows it"
    );
}

#[test]
fn an_unknown_pod_or_namespace_is_waited_for() {
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
fn a_pod_without_an_annotation_has_no_role_or_the_default_role(#[case] pairs: &[(&str, &str)]) {
    let none = rules().resolve_pod(&pod(pairs), None, None);
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
        .resolve_pod(&pod(pairs), None, None),
    );
    assert_eq!(
        grant.role.name(),
        "fallback",
        "exempt from the namespace's policy"
    );
}

#[test]
fn a_hostnetwork_pod_gets_no_default_role_and_is_intercepted_if_it_requests_a_role() {
    let default_role = default_role("fallback");
    let rules = Rules {
        default_role,
        ..rules()
    };
    let host = |pairs: &[(&str, &str)]| Pod {
        host_network: true,
        ..pod(pairs)
    };
    assert!(matches!(
        rules.resolve_pod(&host(&[]), None, None),
        Decision::NoRole(_)
    ));
    assert!(
        !rules.intercepts_host_pod(&host(&[]), None)
            && !rules.intercepts_host_pod(&host(&[("role", " ")]), None)
    );
    for role in ["app", "a b"] {
        assert!(
            rules.intercepts_host_pod(&host(&[("role", role)]), None),
            "granted, refused or not known yet: {role}"
        );
    }
    assert!(!rules.intercepts_host_pod(&pod(&[("role", "app")]), None));
}

#[test]
fn a_refusal_never_falls_through_to_the_default_role() {
    let default_role = default_role("fallback");
    let rules = Rules {
        default_role,
        ..rules()
    };
    for role in ["app", "arn:aws:iam::1:role/x", "a b"] {
        refused(rules.resolve_pod(&pod(&[("role", role)]), Some(&namespace(&[])), None));
    }
}

#[test]
fn a_refused_malformed_role_is_listed_by_a_safe_name() {
    let (name, reason) =
        refused(rules().resolve_pod(&pod(&[("role", "arn:aws:iam::1:role/x<y>\r\nz")]), None, None));
    assert_eq!(name, "xyz");
    assert!(
        reason.contains("12 digits") && reason.contains("apps/web"),
        "{reason}"
    );
    assert!(!reason.contains('\n'), "log lines stay lines: {reason}");
    let (name, _) = refused(rules().resolve_pod(&pod(&[("role", "///")]), None, None));
    assert_eq!(name, "malformed-role");
}

#[test]
fn pods_that_share_a_uid_get_no_role() {
    let inventory = Inventory::new(
        [Arc::new(pod(&[("role", "a")])), Arc::new(pod(&[("role", "b")]))],
        [],
        [],
    );
    let decision = rules().resolve(&inventory, &UID.parse().unwrap());
    assert!(matches!(decision, Decision::NoRole(Reason::Ambiguous { .. })));
}

/// Users start from this example.
#[test]
fn the_example_in_deploy_gives_its_pods_the_documented_roles() {
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
fn annotation_keys_come_from_the_configuration() {
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
        let grant = granted(rules.resolve_pod(&pod, Some(&namespace), None));
        assert_eq!(grant.role.name(), "app");
        assert_eq!(grant.session.external_id.as_deref(), Some("id-1"));
        assert_eq!(grant.session.name.as_str(), "name");
    }
}
