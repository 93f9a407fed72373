//! The table of reasons in `deploy/docs/operations.md`, generated from [`Reason`]. This module does not compile until
//! a new reason has an example and a remedy.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::ValueEnum as _;
use metaproxy::roles::arn::RoleError;
use metaproxy::roles::policy::PolicyError;
use metaproxy::roles::{Allowance, AlsoSearched, Reason, ReasonKind, RoleArn, RoleSource};

use super::generated::{check, row};

#[test]
fn the_table_of_reasons_is_current() {
    let mut text = row([
        "sentence (example)",
        "what the pod gets",
        "what it means",
        "what to do",
    ]);
    text += &row(["---"; 4]);
    let mut sentences = BTreeSet::new();
    for kind in ReasonKind::value_variants() {
        let reason = example(*kind);
        assert_eq!(reason.kind(), *kind);
        let means = kind.to_possible_value().unwrap().get_help().unwrap().to_string();
        let sentence = reason.to_string();
        text += &row([sentence.as_str(), answer(&reason), &means, remedy(*kind)]);
        assert!(sentences.insert(sentence), "{kind:?} has a sentence of its own");
    }
    check("deploy/docs/operations.md", "reasons", &text);
}

/// Returns the answer to a request for credentials, and the event of the pod.
fn answer(reason: &Reason) -> &'static str {
    match reason.kind() {
        ReasonKind::Granted => "200, credentials",
        // There is no event, because an event needs the pod's name.
        ReasonKind::PodUnknown => "503",
        _ if reason.is_refusal() => "200, `AssumeRoleUnauthorizedAccess`; event `RoleRefused`",
        _ if reason.is_unavailable() => "503; event `CredentialsUnavailable` after 10 s",
        _ => "404",
    }
}

fn remedy(kind: ReasonKind) -> &'static str {
    match kind {
        ReasonKind::Granted => "Nothing. If the SDK has other credentials or none, see [symptoms](#symptoms)",
        ReasonKind::NoRole => {
            "Annotate the pod template ([roles.md](roles.md#role-of-a-pod)), or set `--web-identity on` for roles of service accounts. \
             `explain` names annotations whose keys are nearly right"
        }
        ReasonKind::Firewall => "Set `mode: enforce` to serve roles ([modes](configuration.md#modes))",
        ReasonKind::PodUnknown | ReasonKind::NamespaceUnknown | ReasonKind::ServiceAccountUnknown => {
            "Retry in a second. If this lasts, `metaproxy status` on the pod's node says why the API server can't be read \
             ([rights](install.md#rights-in-the-cluster))"
        }
        ReasonKind::MirrorUnconfirmed => {
            "If the pod is not static, remove its `kubernetes.io/config.*` annotations. If it is, wait for the kubelet"
        }
        ReasonKind::BaseUnknown => {
            "Write whole ARNs, or set `roles.baseArn`. `metaproxy doctor` says why the node's role is not known"
        }
        ReasonKind::NodeRole | ReasonKind::IntermediateRole => {
            "Name a role that is made for the pod ([the node's role and the pods' roles](iam.md#the-nodes-role-and-the-pods-roles))"
        }
        ReasonKind::NodeRoleUnknown => {
            "`metaproxy doctor` says why neither the node's metadata service nor STS names the node's role"
        }
        ReasonKind::Ambiguous => {
            "Delete all but one of the pods, or give each its own `metadata.uid` if they come from `--manifests`"
        }
        ReasonKind::MalformedRole | ReasonKind::MalformedAnnotation => {
            "Correct the annotation that the sentence names"
        }
        ReasonKind::NoPolicy => {
            "Annotate the namespace ([roles.md](roles.md#role-of-a-pod)), or set `namespacePolicy: \"off\"` if every pod may have \
             every role"
        }
        ReasonKind::NotPermitted => {
            "Allow the role in the namespace's annotation, or name an allowed role. `explain` has a hint if the pattern is nearly right"
        }
        ReasonKind::MalformedPolicy => {
            "Correct the annotation of the namespace. Until then its pods get no role by annotation"
        }
        ReasonKind::MalformedTag => {
            "Rename the object that the tag names, set `sessions.clusterName`, or set `sessions.tags: \"off\"`"
        }
        ReasonKind::StsDenied => {
            "Correct the role's trust policy, or the policies of the node's role ([iam.md](iam.md#the-nodes-role-and-the-pods-roles)); \
             `metaproxy doctor --role ARN` tries both. The agent tries again after 30 s"
        }
        ReasonKind::TokenDenied => {
            "Grant the agent the right to create `serviceaccounts/token` ([rights](install.md#rights-in-the-cluster)), or correct the \
             admission policy that refuses it"
        }
        ReasonKind::StsUnavailable => "See [MetaproxyStsUnavailable](#metaproxystsunavailable)",
        ReasonKind::SessionsPaced => "Find the software that changes the pod's annotations, and stop it",
    }
}

fn example(kind: ReasonKind) -> Reason {
    let role: RoleArn = "arn:aws:iam::123456789012:role/app".parse().unwrap();
    let given_by = RoleSource::Annotation {
        key: "iam.amazonaws.com/role".to_owned(),
    };
    let (pod, namespace) = ("apps/web".to_owned(), "apps".to_owned());
    let uid = "6f1c2e9a-0000-4000-8000-000000000001".parse().unwrap();
    let permitted = "iam.amazonaws.com/permitted".to_owned();
    match kind {
        ReasonKind::Granted => Reason::Granted {
            role,
            given_by,
            allowance: Box::new(Allowance::By {
                entry: "app".to_owned(),
                key: permitted,
                namespace,
            }),
        },
        ReasonKind::NoRole => Reason::NoRole {
            pod,
            key: "iam.amazonaws.com/role".to_owned(),
            also: AlsoSearched::Nothing,
        },
        ReasonKind::Firewall => Reason::Firewall,
        ReasonKind::PodUnknown => Reason::PodUnknown { uid },
        ReasonKind::MirrorUnconfirmed => Reason::MirrorUnconfirmed { pod },
        ReasonKind::NamespaceUnknown => Reason::NamespaceUnknown { namespace },
        ReasonKind::ServiceAccountUnknown => Reason::ServiceAccountUnknown {
            account: "apps/default".to_owned(),
        },
        ReasonKind::BaseUnknown => Reason::BaseUnknown {
            role: "app".to_owned(),
        },
        ReasonKind::NodeRole => Reason::NodeRole { role, given_by },
        ReasonKind::IntermediateRole => Reason::IntermediateRole { role, given_by },
        ReasonKind::NodeRoleUnknown => Reason::NodeRoleUnknown { role, problem: None },
        ReasonKind::Ambiguous => Reason::Ambiguous {
            uid,
            pods: vec![pod, "shop/web".to_owned()],
        },
        ReasonKind::MalformedRole => Reason::MalformedRole {
            pod,
            given_by,
            value: "no such name!".to_owned(),
            error: RoleError::Name,
        },
        ReasonKind::MalformedAnnotation => Reason::MalformedAnnotation {
            object: pod,
            key: "iam.amazonaws.com/external-id".to_owned(),
            problem: "…".to_owned(),
        },
        ReasonKind::NoPolicy => Reason::NoPolicy {
            role,
            namespace,
            permitted,
            allowed_roles: "iam.amazonaws.com/allowed-roles".to_owned(),
        },
        ReasonKind::NotPermitted => Reason::NotPermitted {
            role,
            namespace,
            policies: "its annotation iam.amazonaws.com/permitted (\"shop-.*\")".to_owned(),
        },
        ReasonKind::MalformedPolicy => Reason::MalformedPolicy {
            namespace,
            key: permitted,
            error: PolicyError::TooLarge,
        },
        ReasonKind::MalformedTag => Reason::MalformedTag {
            pod,
            key: "kubernetes-pod-name",
            value: "…".to_owned(),
        },
        ReasonKind::StsDenied => Reason::StsDenied {
            role,
            message: "User: … is not authorized to perform: sts:AssumeRole".to_owned(),
        },
        ReasonKind::TokenDenied => Reason::TokenDenied {
            role,
            message: "token of apps/default: forbidden".to_owned(),
        },
        ReasonKind::StsUnavailable => Reason::StsUnavailable {
            role,
            message: "connection refused".to_owned(),
        },
        ReasonKind::SessionsPaced => Reason::SessionsPaced {
            role,
            pod,
            at_once: 5,
            interval: Duration::from_secs(2),
        },
    }
}
