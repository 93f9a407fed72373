//! Tests that no pod gets the node's own role or the role that the agent assumes first, in any spelling and from any
//! source.

use super::*;
use crate::roles::{OwnRole, OwnRoles, RoleId};

const ACCOUNT: &str = "123456789012";

fn own(instance: OwnRole, agent: OwnRole) -> Rules {
    let own = OwnRoles {
        instance,
        agent,
        intermediate: RoleId::new(ACCOUNT, "server"),
    };
    Rules { own, ..unasked() }
}

fn node(name: &str) -> OwnRole {
    OwnRole::Is(RoleId::new(ACCOUNT, name).unwrap())
}

/// Returns rules in which the role of the instance profile is `Node` and the role of the agent's credentials is
/// `agent`.
fn known() -> Rules {
    own(node("Node"), node("agent"))
}

fn unknown() -> OwnRole {
    OwnRole::Unknown(None)
}

fn with_account() -> Rules {
    let mut rules = known();
    rules.web_identity = true;
    rules
}

fn kind(decision: &Decision) -> &'static str {
    match decision {
        Decision::Granted(_) => "granted",
        Decision::Refused {
            reason: Reason::NodeRole { .. },
            ..
        } => "node",
        Decision::Refused {
            reason: Reason::IntermediateRole { .. },
            ..
        } => "intermediate",
        Decision::Wait(Reason::NodeRoleUnknown { .. }) => "held",
        _ => "other",
    }
}

#[rstest]
#[case("Node", "node")]
#[case("node", "node")]
#[case("NODE", "node")]
#[case("/Node", "node")]
#[case("a/path/of/Node", "node")]
#[case("/a/path/of/node", "node")]
#[case(" Node ", "node")]
#[case("arn:aws:iam::123456789012:role/Node", "node")]
#[case("ARN:aws:iam::123456789012:role/nOde", "node")]
#[case("Arn:aws:iam::123456789012:role/path/Node", "node")]
#[case("arn:aws-cn:iam::123456789012:role/Node", "node")]
#[case("arn:aws-us-gov:iam::123456789012:role/Node", "node")]
#[case("agent", "node")]
#[case("AGENT", "node")]
#[case("server", "intermediate")]
#[case("kiam/Server", "intermediate")]
#[case("arn:aws:iam::123456789012:role/SERVER", "intermediate")]
#[case("Node-2", "granted")]
#[case("Node/app", "granted")]
#[case("arn:aws:iam::210987654321:role/Node", "granted")]
#[case("arn:aws:iam::210987654321:role/server", "granted")]
fn the_nodes_roles_are_refused_in_every_spelling_and_from_every_source(
    #[case] written: &str,
    #[case] want: &str,
) {
    let annotated = known().resolve_pod(&pod(&[("role", written)]), None, None);
    assert_eq!(kind(&annotated), want, "{annotated:?}");
    let rules = Rules {
        default_role: default_role(written),
        ..known()
    };
    assert_eq!(
        kind(&rules.resolve_pod(&pod(&[]), None, None)),
        want,
        "--default-role"
    );
    let account = ServiceAccount {
        namespace: "apps".to_owned(),
        name: "default".to_owned(),
        annotations: [(ROLE_KEY.to_owned(), written.to_owned())].into(),
    };
    let of_account = with_account().resolve_pod(&pod(&[]), None, Some(&account));
    assert_eq!(kind(&of_account), want, "service account");
}

/// The refusal names the node's role as the cause, even if the namespace does not permit the role either.
#[test]
fn the_nodes_role_is_refused_before_the_namespaces_policy_is_checked() {
    let rules = Rules {
        namespaces: NamespaceRules {
            required: true,
            ..NamespaceRules::default()
        },
        ..known()
    };
    assert_eq!(
        kind(&rules.resolve_pod(&pod(&[("role", "node")]), None, None)),
        "node"
    );
}

#[rstest]
#[case::nothing_is_known(unknown(), unknown(), "held")]
#[case::only_the_agents(unknown(), node("agent"), "held")]
#[case::only_the_instances(node("Node"), unknown(), "granted")]
#[case::both(node("Node"), node("agent"), "granted")]
#[case::static_keys_without_an_instance_profile(OwnRole::None, OwnRole::None, "granted")]
#[case::static_keys_without_a_metadata_service(OwnRole::Undeterminable, OwnRole::None, "granted")]
fn a_role_is_held_until_the_instance_profiles_role_is_known(
    #[case] instance: OwnRole,
    #[case] agent: OwnRole,
    #[case] want: &str,
) {
    let rules = own(instance, agent);
    let decision = rules.resolve_pod(&pod(&[("role", "app")]), None, None);
    assert_eq!(kind(&decision), want, "{decision:?}");
}

/// A known own role is refused at once, even if the other own role is unknown.
#[test]
fn a_refusal_does_not_wait_for_the_other_source() {
    for rules in [own(node("Node"), unknown()), own(unknown(), node("Node"))] {
        let decision = rules.resolve_pod(&pod(&[("role", "node")]), None, None);
        assert_eq!(kind(&decision), "node");
    }
    let server = own(unknown(), unknown()).resolve_pod(&pod(&[("role", "server")]), None, None);
    assert_eq!(kind(&server), "intermediate");
}
