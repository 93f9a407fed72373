//! What an agent discovers about its node, and what it does until then.

use std::time::Duration;

use crate::common::http::{LIST, ask, get, token, with_token};
use crate::common::node;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::Behaviour;
use metaproxy_lab::pod::PodSpec;

#[test]
fn session_tokens_are_required_if_the_node_or_a_flag_requires_them() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let start = |flags: &[&str]| Agent::start(&node.lab, &node.spec().with(flags)).unwrap();
    let without = || get(&a, LIST).status;
    let with = || ask(&a, "GET", LIST, &with_token(&token(&a, 60))).status;
    {
        let _agent = start(&[]);
        assert_eq!(
            (without(), with()),
            (200, 200),
            "auto, and the node requires none"
        );
    }
    {
        let _agent = start(&["--imds-v1", "deny"]);
        assert_eq!((without(), with()), (401, 200));
        for path in ["/latest/user-data", "/latest/meta-data/instance-id", "/nowhere"] {
            assert_eq!(get(&a, path).status, 401, "{path}");
        }
    }
    node.imds.behave(Behaviour {
        requires_tokens: true,
        ..Behaviour::default()
    });
    {
        let agent = start(&[]);
        assert_eq!(
            (without(), with()),
            (401, 200),
            "auto, and the node requires them"
        );
        agent
            .wait_for("requires session tokens, so pods need them too")
            .unwrap();
    }
    let _agent = start(&["--imds-v1", "allow"]);
    assert_eq!((without(), with()), (200, 200));
}

#[test]
fn an_agent_with_all_flags_requests_only_the_nodes_role_from_the_metadata_service() {
    let Some(node) = node() else { return };
    let spec = node.spec().with(&["--region", "us-east-1", "--imds-v1", "allow"]);
    let _agent = Agent::start(&node.lab, &spec).unwrap();
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    crate::common::eventually("the session is fetched ahead", || node.sts.calls().len() == 1);
    assert!(
        node.imds
            .seen()
            .iter()
            .all(|seen| seen.request.contains("token") || seen.request.contains("iam/"))
    );
    drop(a);
}

#[test]
fn names_of_roles_are_in_the_nodes_own_account_unless_a_flag_names_another_base() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "team/role-a")).unwrap();
    let arn = node
        .lab
        .pod(PodSpec::with_role("arn", "arn:aws:iam::999999999999:role/role-b"))
        .unwrap();
    let spec = || AgentSpec {
        base: None,
        ..node.spec()
    };
    let last = || node.sts.calls().pop().unwrap().role;
    {
        let agent = Agent::start(&node.lab, &spec()).unwrap();
        agent
            .wait_for("base=\"arn:aws:iam::123456789012:role/\"")
            .unwrap();
        assert_eq!(get(&a, LIST).body, "role-a");
        assert_eq!(
            get(&a, &format!("{LIST}role-a")).json()["SecretAccessKey"],
            "secret-of-role-a"
        );
    }
    // Without an instance profile, the agent learns the account of the node's credentials from STS.
    node.imds.behave(Behaviour {
        has_no_role: true,
        ..Behaviour::default()
    });
    let environment = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let environment: Vec<_> = environment
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    {
        let _agent = Agent::start(
            &node.lab,
            &AgentSpec {
                environment,
                ..spec()
            },
        )
        .unwrap();
        crate::common::eventually("the name is known", || get(&a, LIST).body == "role-a");
        assert_eq!(get(&a, &format!("{LIST}role-a")).status, 200);
        assert!(last().starts_with("arn:aws:iam::"), "{}", last());
    }
    // With neither, a role's name is answered with 503 and the reason, but an ARN is served.
    let agent = Agent::start(&node.lab, &spec().with(&["--region", "us-east-1"])).unwrap();
    let waiting = get(&a, LIST);
    assert!(
        waiting.status == 503 && waiting.body.contains("--base-role-arn"),
        "{waiting:?}"
    );
    assert_eq!(get(&arn, LIST).body, "role-b");
    agent.wait_for("cannot be found out").unwrap();
    // The metadata service has a role again, so the name can be resolved.
    node.imds.behave(Behaviour::default());
    crate::common::eventually_within(Duration::from_secs(10), "the name is known", || {
        get(&a, LIST).body == "role-a"
    });
}

/// The machine has no metadata service, and gets its credentials from environment variables.
#[test]
fn without_a_metadata_service_the_account_comes_from_sts() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let keys = [("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "s")];
    let environment = keys.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let spec = AgentSpec {
        base: None,
        environment: environment.to_vec(),
        ..node.spec()
    };
    let nowhere = ["--region", "us-east-1", "--imds-endpoint", "http://10.200.0.2:9"];
    let agent = Agent::start(&node.lab, &spec.with(&nowhere)).unwrap();
    assert_eq!(
        get(&a, LIST).status,
        503,
        "not at once: it may be there in a moment"
    );
    agent
        .wait_for("names of roles are those of the node's own account")
        .unwrap();
    assert_eq!(get(&a, LIST).body, "role-a");
    agent.wait_for("until then pods need none").unwrap();
}
