//! No pod gets the node's own role, or the role that the agent assumes first. STS would give both of them.

use std::time::Duration;

use crate::common::doctor::examined;
use crate::common::http::{LIST, Response, get};
use crate::common::sessions::document;
use crate::common::{Node, eventually, eventually_within, node};
use hyper::StatusCode;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds;
use metaproxy_lab::pod::{Pod, PodSpec};
use metaproxy_lab::sts::Behaviour;

/// Returns the behaviour of an STS that gives every role, the node's own too.
fn everything() -> Behaviour {
    Behaviour {
        trusts_itself: true,
        ..Behaviour::default()
    }
}

fn refusal(pod: &Pod) -> Response {
    let name = get(pod, LIST);
    assert_eq!(name.status, 200, "{name:?}");
    let answer = document(pod, &name.body);
    assert_eq!(
        (answer.status, &answer.json()["Code"]),
        (200, &"AssumeRoleUnauthorizedAccess".into()),
        "{answer:?}"
    );
    answer
}

/// Returns the roles of all calls to STS.
fn asked(node: &Node) -> Vec<String> {
    node.sts.calls().into_iter().map(|call| call.role).collect()
}

#[test]
fn no_pod_gets_the_nodes_own_role_although_iam_would_give_it() {
    let Some(node) = node() else { return };
    node.sts.behave(everything());
    let app = node.lab.pod(PodSpec::with_role("app", "role-a")).unwrap();
    let spellings = [
        ("s0", "node"),
        ("s1", "/Node"),
        ("s2", "some/path/NODE"),
        ("s3", "ARN:aws:iam::123456789012:role/node"),
        ("s4", "arn:aws-cn:iam::123456789012:role/x/nodE"),
    ];
    let thieves = spellings.map(|(name, role)| node.lab.pod(PodSpec::with_role(name, role)).unwrap());
    let plain = node.lab.pod(PodSpec::without_role("plain")).unwrap();
    let agent = Agent::start(&node.lab, &node.spec().with(&["--default-role", "node"])).unwrap();
    eventually("others are served", || {
        document(&app, "role-a").body.contains("secret-of-role-a")
    });
    for thief in thieves.iter().chain([&plain]) {
        let answer = refusal(thief);
        assert!(
            answer.body.contains("the node's own role, which no pod gets"),
            "{answer:?}"
        );
    }
    agent.wait_for("the node's own role, which no pod gets").unwrap();
    assert_eq!(asked(&node), ["arn:aws:iam::123456789012:role/role-a"]);
}

#[test]
fn no_pod_gets_the_role_that_the_agent_assumes_first() {
    let Some(node) = node() else { return };
    node.sts.behave(everything());
    let app = node.lab.pod(PodSpec::with_role("app", "role-a")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "KIAM/Server")).unwrap();
    let through = ["--assume-role-arn", "arn:aws:iam::123456789012:role/kiam/server"];
    let _agent = Agent::start(&node.lab, &node.spec().with(&through)).unwrap();
    eventually("others are served", || {
        document(&app, "role-a").body.contains("secret-of-role-a")
    });
    let answer = refusal(&thief);
    assert!(answer.body.contains("--assume-role-arn"), "{answer:?}");
    let sessions = node.sts.calls().into_iter().map(|call| call.session);
    assert_eq!(sessions.filter(|name| name == "apps.thief").count(), 0);
}

#[test]
fn no_session_is_obtained_until_the_owner_of_the_agents_credentials_is_known() {
    let Some(node) = node() else { return };
    node.sts.behave(Behaviour {
        knows_no_caller: Some((503, "ServiceUnavailable")),
        ..everything()
    });
    let app = node.lab.pod(PodSpec::with_role("app", "role-a")).unwrap();
    let thief = node.lab.pod(PodSpec::with_role("thief", "node-by-keys")).unwrap();
    // The agent's credentials belong to another role than that of the instance profile.
    let environment = [("AWS_ACCESS_KEY_ID", "ASIA"), ("AWS_SECRET_ACCESS_KEY", "s")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let spec = AgentSpec {
        environment: environment.to_vec(),
        ..node.spec()
    };
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    for (pod, role) in [(&app, "role-a"), (&thief, "node-by-keys")] {
        let answer = document(pod, role);
        assert_eq!(answer.status, 503, "{answer:?}");
    }
    eventually_within(Duration::from_secs(10), "the pod is answered why", || {
        document(&app, "role-a").body.contains("STS cannot be asked")
    });
    assert_eq!(asked(&node), Vec::<String>::new());
    node.sts.behave(Behaviour {
        caller: Some("arn:aws:sts::123456789012:assumed-role/node-by-keys/x"),
        ..everything()
    });
    eventually_within(Duration::from_secs(10), "it is known", || {
        document(&app, "role-a").body.contains("secret-of-role-a")
    });
    refusal(&thief);
    assert_eq!(asked(&node), ["arn:aws:iam::123456789012:role/role-a"]);
}

#[test]
fn an_agent_with_a_users_keys_serves_pods_on_a_node_without_a_role() {
    let Some(node) = node() else { return };
    node.sts.behave(Behaviour {
        caller: Some("arn:aws:iam::123456789012:user/metaproxy"),
        ..Behaviour::default()
    });
    let app = node.lab.pod(PodSpec::with_role("app", "role-a")).unwrap();
    let environment = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let spec = AgentSpec {
        environment: environment.to_vec(),
        ..node.spec()
    };
    // In one case there is no instance profile, in the other the metadata service is turned off (403).
    let without_role = imds::Behaviour {
        has_no_role: true,
        ..imds::Behaviour::default()
    };
    let switched_off = imds::Behaviour {
        always: Some(StatusCode::FORBIDDEN),
        ..imds::Behaviour::default()
    };
    for behaviour in [without_role, switched_off] {
        node.imds.behave(behaviour);
        let _agent = Agent::start(&node.lab, &spec.clone().with(&["--region", "us-east-1"])).unwrap();
        eventually_within(Duration::from_secs(10), "it is served", || {
            document(&app, "role-a").body.contains("secret-of-role-a")
        });
    }
}

#[test]
fn doctor_warns_if_the_nodes_own_role_may_assume_itself() {
    let Some(node) = node() else { return };
    let says =
        "own role: warning: the node's own role may assume itself (arn:aws:iam::123456789012:role/node)";
    node.sts.behave(everything());
    examined(&node, &[]).has(says, "trust policy");
    let tried = node.sts.calls().pop().unwrap();
    assert_eq!(tried.duration.as_deref(), Some("900"));
    node.sts.behave(Behaviour::default());
    examined(&node, &[]).has("own role: ok: ", "");
}
