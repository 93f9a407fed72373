//! Tests the roles of service accounts.

use super::*;
use crate::pods::Mirror;
use crate::pods::ServiceAccount;
use crate::roles::web_identity::{AUDIENCE_KEY, REGIONAL_KEY};
use crate::roles::{Principal, SessionScope, SessionTags, StsEndpoint, TagRules};

const ARN: &str = "arn:aws:iam::123456789012:role/of-account";

fn asked() -> Rules {
    Rules {
        web_identity: true,
        ..rules()
    }
}

fn account(pairs: &[(&str, &str)]) -> ServiceAccount {
    ServiceAccount {
        namespace: "apps".to_owned(),
        name: "default".to_owned(),
        annotations: pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    }
}

fn identity(grant: &Grant) -> &WebIdentity {
    match &grant.session.principal {
        Principal::ServiceAccount(identity) => identity,
        Principal::Node => panic!("{grant:?}"),
    }
}

#[test]
fn a_service_accounts_role_is_assumed_with_a_token_bound_to_the_pod() {
    let account = account(&[(ROLE_KEY, ARN)]);
    let grant = granted(asked().resolve_pod(&pod(&[]), Some(&namespace(&[])), Some(&account)));
    assert_eq!(grant.role.as_str(), ARN);
    let want = WebIdentity {
        namespace: "apps".to_owned(),
        service_account: "default".to_owned(),
        pod: "web".to_owned(),
        uid: UID.parse().unwrap(),
        audience: "sts.amazonaws.com".to_owned(),
        endpoint: StsEndpoint::Regional,
    };
    assert_eq!(*identity(&grant), want);
    assert_eq!(grant.session.name.as_str(), "apps.web");
    let Reason::Granted {
        given_by, allowance, ..
    } = &grant.reason
    else {
        panic!("{:?}", grant.reason);
    };
    let source = RoleSource::ServiceAccount {
        key: ROLE_KEY.to_owned(),
        account: "apps/default".to_owned(),
    };
    assert_eq!((given_by, &**allowance), (&source, &Allowance::TrustPolicy));
}

#[test]
fn a_web_identity_session_is_never_shared_and_has_no_tags_or_external_id() {
    let account = account(&[(ROLE_KEY, ARN)]);
    let rules = Rules {
        sessions: SessionRules {
            scope: SessionScope::Role,
            tags: TagRules::On { cluster: None },
            node: None,
        },
        ..asked()
    };
    let pod = pod(&[("external-id", "id-1"), ("session-name", "mine")]);
    let grant = granted(rules.resolve_pod(&pod, Some(&namespace(&[])), Some(&account)));
    assert_eq!(grant.session.pod, Some(UID.parse().unwrap()));
    assert_eq!(grant.session.name.as_str(), "mine");
    assert_eq!(grant.session.tags, SessionTags::default());
    assert!(grant.session.external_id.is_none());
}

#[test]
fn the_pods_annotation_precedes_the_service_account_and_the_default_role_follows() {
    let rules = Rules {
        default_role: default_role("fallback"),
        ..asked()
    };
    let everything = namespace(&[("permitted", ".*")]);
    let resolve = |pairs: &[(&str, &str)], account: &ServiceAccount| {
        let grant = granted(rules.resolve_pod(&pod(pairs), Some(&everything), Some(account)));
        grant.role.name().to_owned()
    };
    let annotated = account(&[(ROLE_KEY, ARN)]);
    assert_eq!(resolve(&[("role", "app")], &annotated), "app");
    assert_eq!(resolve(&[], &annotated), "of-account");
    assert_eq!(resolve(&[], &account(&[(ROLE_KEY, " ")])), "fallback");
}

#[rstest]
#[case::policy_without_it(&[(ROLE_KEY, ARN)], &[("permitted", "other")], "is not permitted in namespace apps")]
#[case::malformed(&[(ROLE_KEY, "a b")], &[], "annotation eks.amazonaws.com/role-arn of service account apps/default names the role \"a b\"")]
#[case::audience(&[(ROLE_KEY, ARN), (AUDIENCE_KEY, "a b")], &[], "annotation eks.amazonaws.com/audience of service account apps/default cannot be used")]
#[case::endpoint(&[(ROLE_KEY, ARN), (REGIONAL_KEY, "maybe")], &[], "annotation eks.amazonaws.com/sts-regional-endpoints of service account apps/default cannot be used: it is true or false")]
fn a_refusal_is_final(
    #[case] of_account: &[(&str, &str)],
    #[case] of_namespace: &[(&str, &str)],
    #[case] want: &str,
) {
    let rules = Rules {
        default_role: default_role("fallback"),
        ..asked()
    };
    let decision = rules.resolve_pod(
        &pod(&[]),
        Some(&namespace(of_namespace)),
        Some(&account(of_account)),
    );
    let (_, reason) = refused(decision);
    assert!(reason.contains(want), "{reason}");
}

#[test]
fn a_role_that_the_policy_allows_uses_the_annotated_audience_and_endpoint() {
    let account = account(&[(ROLE_KEY, ARN), (AUDIENCE_KEY, "aud"), (REGIONAL_KEY, "false")]);
    let namespace = namespace(&[("permitted", "of-account")]);
    let grant = granted(asked().resolve_pod(&pod(&[]), Some(&namespace), Some(&account)));
    assert_eq!(identity(&grant).audience, "aud");
    assert_eq!(identity(&grant).endpoint, StsEndpoint::Global);
}

#[test]
fn an_unknown_service_account_is_waited_for_only_if_web_identity_is_on() {
    let rules = Rules {
        default_role: default_role("fallback"),
        ..asked()
    };
    let namespace = namespace(&[]);
    let decision = rules.resolve_pod(&pod(&[]), Some(&namespace), None);
    assert!(
        matches!(&decision, Decision::Wait(Reason::ServiceAccountUnknown { account }) if account == "apps/default"),
        "{decision:?}"
    );
    let annotated = account(&[(ROLE_KEY, ARN)]);
    let off = super::rules().resolve_pod(&pod(&[]), Some(&namespace), Some(&annotated));
    assert!(matches!(off, Decision::NoRole(_)), "{off:?}");
    let none = asked().resolve_pod(&pod(&[]), Some(&namespace), Some(&account(&[])));
    match none {
        Decision::NoRole(Reason::NoRole {
            also: AlsoSearched::ServiceAccount { account },
            ..
        }) => {
            assert_eq!(account, "apps/default");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_static_pod_gets_no_role_of_a_service_account() {
    let annotated = account(&[(ROLE_KEY, ARN)]);
    let mirror = Pod {
        mirror: Mirror::Confirmed("0123456789abcdef0123456789abcdef".parse().unwrap()),
        host_network: true,
        ..pod(&[])
    };
    assert!(matches!(
        asked().resolve_pod(&mirror, Some(&namespace(&[])), Some(&annotated)),
        Decision::NoRole(_)
    ));
    assert!(!asked().intercepts_host_pod(&mirror, Some(&annotated)));
}

#[test]
fn a_hostnetwork_pod_is_intercepted_for_its_service_accounts_role_or_if_enforced() {
    let host = Pod {
        host_network: true,
        ..pod(&[])
    };
    let annotated = account(&[(ROLE_KEY, ARN)]);
    assert!(asked().intercepts_host_pod(&host, Some(&annotated)));
    assert!(!asked().intercepts_host_pod(&host, Some(&account(&[]))));
    assert!(
        !asked().intercepts_host_pod(&host, None),
        "it must work before anything is known"
    );
    assert!(!rules().intercepts_host_pod(&host, Some(&annotated)));
    let enforced = Rules {
        enforce_host_network: true,
        ..rules()
    };
    assert!(enforced.intercepts_host_pod(&host, None));
    assert!(
        !enforced.intercepts_host_pod(&pod(&[]), None),
        "every other pod is intercepted anyway"
    );
}
