//! What an agent finds out about its node, and what it does until then.

use std::time::Duration;

use crate::common::http::{LIST, ask, get, token, with_token};
use crate::common::node;
use metaproxy_lab::agent::{Agent, AgentSpec};
use metaproxy_lab::imds::Behaviour;
use metaproxy_lab::pod::PodSpec;

#[test]
fn tokens_are_required_where_the_node_requires_them_or_a_flag_says_so() {
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
fn an_agent_that_knows_everything_asks_the_nodes_service_for_the_nodes_role_only() {
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
fn names_of_roles_are_those_of_the_nodes_own_account_unless_a_flag_says_otherwise() {
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
    // Without an instance profile STS says to whom the node's credentials belong.
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
    // Neither: names wait, and say what for; ARNs do not.
    let agent = Agent::start(&node.lab, &spec().with(&["--region", "us-east-1"])).unwrap();
    let waiting = get(&a, LIST);
    assert!(
        waiting.status == 503 && waiting.body.contains("--base-role-arn"),
        "{waiting:?}"
    );
    assert_eq!(get(&arn, LIST).body, "role-b");
    agent.wait_for("cannot be found out").unwrap();
    // And then the role is there.
    node.imds.behave(Behaviour::default());
    crate::common::eventually_within(Duration::from_secs(10), "the name is known", || {
        get(&a, LIST).body == "role-a"
    });
}

/// A machine without a metadata service, with credentials from elsewhere.
#[test]
fn where_there_is_no_metadata_service_sts_tells_the_account() {
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
