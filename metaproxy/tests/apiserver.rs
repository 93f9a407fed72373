//! Pods from an API server, whatever it does: the real programs, pods of the lab, and a server that fails as it is told.
//! `cargo xtask test --cluster` has the real one.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::sessions::{ROLE, document, document_is_good};
use common::{Node, agent_binary, counts, dial, eventually, node, outcomes, start_dial};
use rstest::rstest;
use serde_json::{Value, json};
use xtask::lab::agent::{Agent, AgentSpec};
use xtask::lab::apiserver::{Behaviour, FakeApiServer};
use xtask::lab::pod::{Pod, PodSpec};

const NODE: &str = "node1";
const TAINT: &str = "metaproxy/agent-not-ready";

struct Cluster {
    node: Node,
    api: FakeApiServer,
}

fn cluster() -> Option<Cluster> {
    let node = node()?;
    let api = FakeApiServer::start(node.lab.aws()).unwrap();
    api.put("namespaces", json!({ "metadata": { "name": "apps" } }));
    Some(Cluster { node, api })
}

impl Cluster {
    fn spec(&self, flags: &[&str]) -> AgentSpec {
        let mut spec = self.node.spec();
        if flags.contains(&"--namespace-policy") {
            let off = spec
                .flags
                .iter()
                .position(|flag| flag == "--namespace-policy")
                .unwrap();
            spec.flags.drain(off..=off + 1);
        }
        AgentSpec {
            cluster: Some((self.api.kubeconfig(self.node.lab.dir()).unwrap(), NODE)),
            ..spec.with(flags)
        }
    }

    fn agent(&self, flags: &[&str]) -> Agent {
        Agent::start(&self.node.lab, &self.spec(flags)).unwrap()
    }

    /// A pod of the lab that the API server does not know.
    fn pod(&self, name: &'static str) -> Pod {
        let spec = PodSpec {
            known: false,
            ..PodSpec::without_role(name)
        };
        self.node.lab.pod(spec).unwrap()
    }

    /// Tells the API server of a pod, or of a change.
    fn put(&self, name: &str, pod: &Pod, annotations: Value) {
        self.api.put(
            "pods",
            json!({
                "metadata": { "name": name, "namespace": "apps", "uid": pod.uid(), "annotations": annotations },
                "spec": { "nodeName": NODE, "serviceAccountName": "web", "containers": [] },
                "status": { "phase": "Running" },
            }),
        );
    }

    fn with_role(&self, name: &'static str, role: &str) -> Pod {
        let pod = self.pod(name);
        self.put(name, &pod, json!({ ROLE: role }));
        pod
    }

    fn report(&self) -> (bool, String) {
        let output = Command::new(agent_binary())
            .args(["probe", "ready", "--runtime-dir"])
            .arg(self.node.lab.dir().join("run"))
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    fn reports(&self, text: &str) -> bool {
        self.report().1.contains(text)
    }
}

fn has(pod: &Pod, role: &str) -> bool {
    dial(pod, &[]) == counts([(role, 1)])
}

#[test]
fn pods_come_and_change_and_go_and_only_those_of_this_node_are_asked_for() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let _agent = cluster.agent(&[]);
    assert!(has(&a, "role-a") && document_is_good(&a, "role-a"));
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    eventually("the other role", || has(&a, "role-b"));
    cluster.put("a", &a, json!({}));
    eventually("none", || has(&a, "status 404"));
    cluster.api.delete("pods", "apps", "a");
    eventually("nobody", || has(&a, "status 503"));
    let requests = cluster.api.requests();
    let lists = requests
        .iter()
        .filter(|request| request.contains("/api/v1/pods?"));
    assert!(
        lists
            .clone()
            .all(|list| list.contains("fieldSelector=spec.nodeName%3Dnode1")),
        "{requests:?}"
    );
    assert!(
        lists.clone().any(|list| list.contains("resourceVersion=0&")),
        "from memory: {requests:?}"
    );
    assert!(
        !requests
            .iter()
            .any(|request| request.contains("namespaces") || request.contains("serviceaccounts")),
        "nobody asks them (--namespace-policy=off): {requests:?}"
    );
}

#[test]
fn a_request_of_a_pod_that_is_not_known_yet_is_answered_as_soon_as_it_is() {
    let Some(cluster) = cluster() else { return };
    let _agent = cluster.agent(&[]);
    let a = cluster.pod("a");
    let asking = start_dial(&a, &["--count", "20", "--threads", "20"]);
    std::thread::sleep(Duration::from_millis(300));
    cluster.put("a", &a, json!({ ROLE: "role-a" }));
    assert_eq!(outcomes(asking), counts([("role-a", 20)]));
}

#[test]
fn sessions_are_there_before_the_pod_asks_and_finished_pods_have_none() {
    let Some(cluster) = cluster() else { return };
    let done = cluster.pod("done");
    cluster.api.put(
        "pods",
        json!({
            "metadata": { "name": "done", "namespace": "apps", "uid": done.uid(), "annotations": { ROLE: "role-done" } },
            "spec": { "nodeName": NODE, "containers": [] },
            "status": { "phase": "Succeeded" },
        }),
    );
    let _agent = cluster.agent(&[]);
    let _a = cluster.with_role("a", "role-a");
    eventually("a session", || {
        cluster
            .node
            .sts
            .calls()
            .iter()
            .any(|call| call.role.ends_with("/role-a"))
    });
    assert!(
        !cluster
            .node
            .sts
            .calls()
            .iter()
            .any(|call| call.role.ends_with("/role-done"))
    );
    // Whatever its phase says: a process that still runs is served.
    assert!(document_is_good(&done, "role-done"));
}

/// Each time something changes that only a new list, or a new watch, can tell.
#[rstest]
#[case::gone_in_the_watch(Some(410))]
#[case::another_error_in_the_watch(Some(500))]
#[case::ended(None)]
fn a_watch_that_ends_or_is_too_old_is_taken_up_again(#[case] code: Option<u16>) {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    let _agent = cluster.agent(&["--namespace-policy", "required"]);
    cluster.api.put(
        "namespaces",
        json!({ "metadata": { "name": "apps", "annotations": { "iam.amazonaws.com/permitted": ".*" } } }),
    );
    eventually("the role", || document_is_good(&a, "role-a"));
    let asking = start_dial(&a, &["--count", "0", "--seconds", "3"]);
    cluster.api.forget(code);
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    eventually("the change", || has(&a, "role-b"));
    eventually("health", || cluster.report().0 && !cluster.reports("degraded"));
    let got = outcomes(asking);
    assert!(
        got.keys().all(|role| role == "role-a" || role == "role-b"),
        "{got:?}"
    );
}

#[rstest]
#[case::too_old(410)]
#[case::too_new(504)]
#[case::busy(429)]
#[case::broken(500)]
fn a_watch_that_cannot_begin_is_tried_again_and_what_is_known_is_served(#[case] code: u16) {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.behave(Behaviour {
        watches: Some(code),
        ..Behaviour::default()
    });
    let _agent = cluster.agent(&[]);
    assert!(document_is_good(&a, "role-a"));
    eventually("a report", || {
        cluster.reports("no watch now; what was known stays in force")
    });
    assert!(cluster.report().0, "pods are served");
    cluster.put("a", &a, json!({ ROLE: "role-b" }));
    cluster.api.behave(Behaviour::default());
    let start = Instant::now();
    while !has(&a, "role-b") {
        assert!(
            start.elapsed() < Duration::from_secs(12),
            "{}",
            cluster.report().1
        );
    }
    eventually("health", || cluster.reports("[+]pods ok"));
}

#[derive(Clone, Copy, Debug)]
enum Outage {
    Refused,
    Broken,
    Hanging,
}

/// Known pods go on, unknown ones are held and then refused, and an agent that starts meanwhile knows what was known.
#[rstest]
#[case(Outage::Refused)]
#[case(Outage::Broken)]
#[case(Outage::Hanging)]
fn an_outage_costs_known_pods_nothing_also_where_the_agent_starts_meanwhile(#[case] outage: Outage) {
    let Some(mut cluster) = cluster() else { return };
    cluster.api.put(
        "namespaces",
        json!({ "metadata": { "name": "apps", "annotations": { "iam.amazonaws.com/permitted": "role-a" } } }),
    );
    let a = cluster.with_role("a", "role-a");
    let refused = cluster.with_role("refused", "role-b");
    let unknown = cluster.pod("unknown");
    let mut agent = cluster.agent(&["--namespace-policy", "required"]);
    assert!(document_is_good(&a, "role-a"));
    let remembered = cluster.node.lab.dir().join("run/pods.json");
    eventually("what is known to be written", || {
        std::fs::read_to_string(&remembered)
            .is_ok_and(|text| text.contains(a.uid()) && text.contains(refused.uid()))
    });
    match outage {
        Outage::Refused => cluster.api.go_away(),
        Outage::Broken => cluster.api.behave(Behaviour {
            always: Some(503),
            ..Behaviour::default()
        }),
        Outage::Hanging => cluster.api.behave(Behaviour {
            hangs: true,
            ..Behaviour::default()
        }),
    }
    cluster.api.forget(None);
    let looks_right = |what: &str| {
        assert!(document_is_good(&a, "role-a"), "{what}");
        assert_eq!(
            document(&refused, "role-b").json()["Code"],
            "AssumeRoleUnauthorizedAccess",
            "{what}"
        );
        let start = Instant::now();
        assert!(has(&unknown, "status 503"), "{what}");
        assert!(start.elapsed() > Duration::from_millis(500), "{what}: held");
    };
    looks_right("while it runs");
    agent.signal(nix::sys::signal::Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    let start = Instant::now();
    let _agent = cluster.agent(&["--namespace-policy", "required"]);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    looks_right("started meanwhile");
    let (ready, report) = cluster.report();
    assert!(
        ready && report.contains("those of the last run are served"),
        "{report}"
    );
    match outage {
        Outage::Refused => cluster.api.come_back().unwrap(),
        Outage::Broken | Outage::Hanging => cluster.api.behave(Behaviour::default()),
    }
    cluster.put("unknown", &unknown, json!({ ROLE: "role-a" }));
    let start = Instant::now();
    while !has(&unknown, "role-a") {
        assert!(
            start.elapsed() < Duration::from_secs(25),
            "{}",
            cluster.report().1
        );
    }
    eventually("health", || {
        cluster.reports("[+]pods ok") && cluster.reports("[+]namespaces ok")
    });
}

#[test]
fn without_anything_known_an_agent_attaches_and_gives_nobody_anything() {
    let Some(mut cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.go_away();
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&[])).unwrap();
    agent.wait_for("attached to the pods' cgroup").unwrap();
    assert!(has(&a, "status 503"));
    let (ready, report) = cluster.report();
    assert!(!ready && report.contains("[-]pods failed: since"), "{report}");
    assert!(cluster.node.imds.seen_from_pods().is_empty());
    cluster.api.come_back().unwrap();
    agent.wait_for(" ready ").unwrap();
    eventually("the role", || document_is_good(&a, "role-a"));
}

#[test]
fn what_the_agent_may_not_do_is_named_until_it_may() {
    let Some(cluster) = cluster() else { return };
    let denied = |names: &[&str]| Behaviour {
        denied: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Behaviour::default()
    };
    cluster
        .api
        .behave(denied(&["list pods", "create serviceaccounts/token"]));
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&["--web-identity", "on"])).unwrap();
    agent
        .wait_for("permissions: this service account may not list pods, nor create serviceaccounts/token;")
        .unwrap();
    eventually("a report", || {
        cluster.reports("[-]permissions failed: this service account may not list pods")
    });
    assert!(
        cluster.reports("[-]pods failed: since") && cluster.reports("pods is forbidden"),
        "{}",
        cluster.report().1
    );
    cluster.api.behave(denied(&["create events.events.k8s.io"]));
    agent.wait_for(" ready ").unwrap();
    assert!(cluster.report().0, "pods are served: {}", cluster.report().1);
}

#[test]
fn a_service_accounts_role_is_had_with_its_token_which_nobody_sees() {
    let Some(cluster) = cluster() else { return };
    let account = |annotations: Value| {
        cluster.api.put(
            "serviceaccounts",
            json!({ "metadata": { "name": "web", "namespace": "apps", "annotations": annotations } }),
        );
    };
    account(json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/of-account" }));
    let a = cluster.pod("a");
    cluster.put("a", &a, json!({}));
    let agent = cluster.agent(&["--web-identity", "on", "--log", "trace"]);
    assert!(document_is_good(&a, "of-account"));
    let calls = cluster.node.sts.calls();
    let call = calls
        .iter()
        .find(|call| call.role.ends_with("/of-account"))
        .unwrap();
    assert_eq!(call.web_identity.as_deref(), Some("token-of-a-service-account"));
    assert_eq!((call.session.as_str(), call.signed_by.as_str()), ("apps.a", ""));
    let asked = cluster
        .api
        .posted("/api/v1/namespaces/apps/serviceaccounts/web/token");
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0]["spec"],
        json!({
            "audiences": ["sts.amazonaws.com"],
            "expirationSeconds": 600,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": "a", "uid": a.uid() },
        })
    );
    assert!(
        !agent.said().contains("token-of-a-service-account"),
        "{}",
        agent.said()
    );
    let remembered =
        std::fs::read_to_string(cluster.node.lab.dir().join("run/pods.json")).unwrap_or_default();
    assert!(!remembered.contains("token-of"), "{remembered}");
    // Without a token there is no session, and the pod is told why.
    cluster.api.behave(Behaviour {
        gives_no_token: true,
        ..Behaviour::default()
    });
    account(json!({ "eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/another" }));
    eventually("the other role", || has(&a, "another"));
    let answer = document(&a, "another");
    assert_eq!(answer.status, 503);
    assert!(
        answer.body.contains("no token for service account apps/web: ")
            && answer.body.contains("no tokens today"),
        "{}",
        answer.body
    );
    account(json!({}));
    eventually("none", || has(&a, "status 404"));
}

#[test]
fn a_refusal_is_told_to_the_pods_owner_once() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "not a role");
    let _agent = cluster.agent(&[]);
    eventually("an event", || cluster.api.posted("/events").len() == 1);
    for _ in 0..20 {
        document(&a, "notarole");
    }
    // Something else about it changes, and the decision is made again.
    cluster.put(
        "a",
        &a,
        json!({ ROLE: "not a role", "iam.amazonaws.com/external-id": "id-1" }),
    );
    std::thread::sleep(Duration::from_millis(500));
    let events = cluster.api.posted("/events");
    assert_eq!(events.len(), 1, "{events:?}");
    let event = &events[0];
    assert_eq!(event["regarding"]["uid"], a.uid());
    assert_eq!(
        (&event["reason"], &event["type"]),
        (&json!("RoleRefused"), &json!("Warning"))
    );
    let message = document(&a, "notarole").json()["Message"].clone();
    assert_eq!(event["note"], message, "the same sentence");
    // STS's refusals too.
    cluster.node.sts.behave(xtask::lab::sts::Behaviour {
        denies: Some("denied"),
        ..xtask::lab::sts::Behaviour::default()
    });
    cluster.put("a", &a, json!({ ROLE: "denied" }));
    eventually("STS's refusal", || {
        document(&a, "denied").json()["Code"] == "AssumeRoleUnauthorizedAccess"
    });
    eventually("another event", || cluster.api.posted("/events").len() == 2);
}

#[test]
fn the_startup_taint_goes_when_pods_are_served_and_others_stay() {
    let Some(cluster) = cluster() else { return };
    let taint = |key: &str| json!({ "key": key, "effect": "NoSchedule" });
    cluster.api.put(
        "nodes",
        json!({ "metadata": { "name": NODE }, "spec": { "taints": [taint("other"), taint(TAINT)] } }),
    );
    cluster.api.behave(Behaviour {
        denied: ["list pods".to_owned()].into(),
        ..Behaviour::default()
    });
    let agent = Agent::spawn(&cluster.node.lab, &cluster.spec(&["--startup-taint", TAINT])).unwrap();
    agent.wait_for("attached to the pods' cgroup").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let taints = || cluster.api.object("nodes", "/node1")["spec"]["taints"].clone();
    assert_eq!(
        taints(),
        json!([taint("other"), taint(TAINT)]),
        "pods are not served yet"
    );
    cluster.api.behave(Behaviour::default());
    agent.wait_for("removed the startup taint").unwrap();
    assert_eq!(taints(), json!([taint("other")]));
    let patches = cluster.api.posted("/nodes/node1");
    assert!(
        patches[0]["metadata"]["resourceVersion"].is_string(),
        "only if nobody changed it meanwhile: {patches:?}"
    );
    eventually("a report", || cluster.reports("[+]startup-taint ok"));
}

#[test]
fn objects_that_make_no_sense_are_left_out_and_nobody_else_is_affected() {
    let Some(cluster) = cluster() else { return };
    let a = cluster.with_role("a", "role-a");
    cluster.api.put("pods", json!({ "metadata": { "name": "no-uid", "namespace": "apps" }, "spec": { "nodeName": NODE, "containers": [] } }));
    cluster.api.put("pods", json!({ "metadata": { "name": "odd", "namespace": "apps", "uid": "../.." }, "spec": { "nodeName": NODE, "containers": [] } }));
    let agent = cluster.agent(&[]);
    agent.wait_for("pod apps/no-uid has no metadata.uid").unwrap();
    agent.wait_for("pod apps/odd: metadata.uid").unwrap();
    assert!(document_is_good(&a, "role-a"));
}
