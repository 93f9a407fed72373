//! The answer, event, log line, metric and explanation that a real agent gives for the same pod. Its pods come from
//! an API server.

use std::time::Duration;

use crate::common::cluster::{Cluster, NODE, cluster};
use crate::common::doctor::examined;
use crate::common::http::{LIST, get};
use crate::common::sessions::ROLE;
use crate::common::{eventually, eventually_within};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::Pod;
use metaproxy_lab::sts::Behaviour;
use serde_json::{Value, json};

/// Runs a command for operators on the node.
fn run_command(cluster: &Cluster, words: &[&str]) -> Value {
    let output = cluster
        .node
        .host_command(crate::common::agent_binary())
        .args(words)
        .args(["--output", "json", "--runtime-dir"])
        .arg(cluster.node.lab.runtime_dir())
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// Makes a pod of the lab, and adds it to the API server with these properties.
fn pod(cluster: &Cluster, namespace: &str, name: &'static str, annotations: Value, phase: &str) -> Pod {
    let pod = cluster.pod(name);
    cluster.api.put(
        "pods",
        json!({
            "metadata": { "name": name, "namespace": namespace, "uid": pod.uid(), "annotations": annotations },
            "spec": { "nodeName": NODE, "serviceAccountName": "web", "containers": [] },
            "status": { "phase": phase },
        }),
    );
    pod
}

/// Returns an answer's content in the words of `explain`, which never shows a secret.
fn in_words(body: &str) -> String {
    // A role's name may be valid JSON too, such as `2024` or `true`.
    if let Ok(document @ Value::Object(_)) = serde_json::from_str(body) {
        let field = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
        return match field("Code").as_str() {
            "Success" => format!(
                "credentials {} until {}",
                field("AccessKeyId"),
                field("Expiration")
            ),
            code => format!("{code}: {}", field("Message")),
        };
    }
    let sentence = body
        .split_once("<p>")
        .and_then(|(_, rest)| Some(rest.rsplit_once("</p>")?.0));
    let unescaped = sentence.map(|text| {
        text.replace("&lt;", "<")
            .replace("&gt;", ">")
            .replace("&amp;", "&")
    });
    unescaped.unwrap_or_else(|| body.to_owned())
}

/// Requests credentials from a pod. Returns the answer's status, and its content in the words of `explain`.
fn answered(pod: &Pod) -> (u16, String) {
    let mut answer = get(pod, LIST);
    if answer.status == 200 {
        answer = get(pod, &format!("{LIST}{}", answer.body));
    }
    (answer.status, in_words(&answer.body))
}

/// Asserts that the pod's event and the log have the explanation's sentence.
fn everywhere(cluster: &Cluster, agent: &Agent, pod: &Pod, explained: &Value) {
    let (verdict, because) = (explained["verdict"].as_str().unwrap(), &explained["because"]);
    let sentence = because.as_str().unwrap();
    let notes = || -> Vec<(Value, Value)> {
        let events = cluster.api.posted("/events");
        let own = events
            .into_iter()
            .filter(|event| event["regarding"]["uid"] == pod.uid());
        own.map(|event| (event["reason"].clone(), event["note"].clone()))
            .collect()
    };
    let reason = match verdict {
        "refused" => Some("RoleRefused"),
        "unavailable" | "waiting" => Some("CredentialsUnavailable"),
        _ => None,
    };
    if let Some(reason) = reason {
        eventually_within(Duration::from_secs(20), "the event", || {
            // An event appears only while the pod keeps getting 503, so it is asked again.
            assert_eq!(answered(pod).0 == 503, verdict != "refused", "{sentence}");
            !notes().is_empty()
        });
        assert_eq!(notes(), [(json!(reason), because.clone())]);
    } else {
        assert_eq!(notes(), [], "{sentence}");
    }
    let logged = agent.logged();
    assert!(
        logged.lines().any(|line| line.contains(sentence)),
        "{sentence} in\n{logged}"
    );
}

/// Asserts that answer, explanation, event and log have the same sentence.
fn agree(cluster: &Cluster, agent: &Agent, pod: &Pod, name: &str, wanted: (&str, u16, &str)) {
    let (verdict, status, sentence) = wanted;
    let explain = || run_command(cluster, &["explain", name]);
    // The agent needs time until it knows the pod, and until STS has answered.
    eventually(&format!("{name}: {sentence}"), || {
        answered(pod).1.contains(sentence) && explain()["because"].as_str().unwrap().contains(sentence)
    });
    let explained = explain();
    assert_eq!(explained["verdict"], verdict, "{explained:#}");
    let (code, words) = answered(pod);
    let because = explained["because"].as_str().unwrap();
    let prefix = if verdict == "refused" {
        "AssumeRoleUnauthorizedAccess: "
    } else {
        ""
    };
    assert_eq!((code, words.as_str()), (status, &*format!("{prefix}{because}")));
    let last = explained["answers"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["status"], &last["says"]), (&json!(code), &json!(words)));
    everywhere(cluster, agent, pod, &explained);
}

#[test]
fn a_pods_answer_its_event_the_log_and_explain_agree() {
    let Some(cluster) = cluster() else { return };
    cluster.node.sts.behave(Behaviour {
        denies: Some("denied"),
        ..Behaviour::default()
    });
    let namespace = |name: &str, annotations: Value| {
        let metadata = json!({ "name": name, "annotations": annotations });
        cluster.api.put("namespaces", json!({ "metadata": metadata }));
    };
    namespace(
        "apps",
        json!({ "iam.amazonaws.com/permitted": "granted|denied|away" }),
    );
    namespace("bare", json!({}));
    let agent = cluster.agent(&["--namespace-policy", "required"]);
    let asks = |namespace: &str, name: &'static str, role: &str| {
        pod(&cluster, namespace, name, json!({ ROLE: role }), "Running")
    };

    let granted = asks("apps", "granted", "granted");
    eventually("credentials", || answered(&granted).1.starts_with("credentials "));
    let explained = run_command(&cluster, &["explain", "apps/granted"]);
    let line = &explained["credentials"];
    let (id, until) = (line["accessKeyId"].as_str(), line["expires"].as_str());
    let words = format!("credentials {} until {}", id.unwrap(), until.unwrap());
    assert_eq!(answered(&granted), (200, words.clone()));
    assert_eq!(explained["answers"][1]["says"], words);
    let audited = format!("access_key_id={:?}", id.unwrap());
    assert!(agent.logged().contains(&audited), "{}", agent.logged());

    let refused: [(&str, &'static str, &str, &str); 4] = [
        (
            "apps",
            "malformed",
            "no such name!",
            "names the role \"no such name!\"",
        ),
        (
            "apps",
            "other",
            "billing",
            "(\"granted|denied|away\") does not allow it",
        ),
        ("bare", "bare", "granted", "the namespace has neither annotation"),
        ("apps", "denied", "denied", "STS refused role"),
    ];
    for (namespace, name, role, sentence) in refused {
        let pod = asks(namespace, name, role);
        let full = format!("{namespace}/{name}");
        agree(&cluster, &agent, &pod, &full, ("refused", 200, sentence));
    }
    let none = pod(&cluster, "apps", "none", json!({}), "Running");
    let wanted = ("no-role", 404, "it has no annotation iam.amazonaws.com/role");
    agree(&cluster, &agent, &none, "apps/none", wanted);
    let waits = asks("elsewhere", "waits", "granted");
    let wanted = ("waiting", 503, "namespace elsewhere is not known yet");
    agree(&cluster, &agent, &waits, "elsewhere/waits", wanted);
    cluster.node.sts.behave(Behaviour {
        fails: Some((400, "ExpiredTokenException")),
        ..Behaviour::default()
    });
    let away = asks("apps", "away", "away");
    let wanted = ("unavailable", 503, "at the moment: ");
    agree(&cluster, &agent, &away, "apps/away", wanted);
    // The table of `explain --all`, `status` and the metrics have the same verdict as the answer.
    let verdicts = |list: &Value| -> Vec<Value> {
        let of_away = list
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["pod"] == "apps/away");
        of_away.map(|one| one["verdict"].clone()).collect()
    };
    assert_eq!(
        verdicts(&run_command(&cluster, &["explain", "--all"])),
        ["unavailable"]
    );
    assert_eq!(
        verdicts(&run_command(&cluster, &["status"])["pods"]),
        ["unavailable"]
    );
    // The alert MetaproxyPodsWithoutSession uses these series.
    let metrics = cluster.node.asked("/metrics");
    for verdict in ["unavailable", "waiting"] {
        let line = format!("metaproxy_pod_verdicts{{verdict=\"{verdict}\"}} 1");
        assert!(metrics.lines().any(|found| found == line), "{line}: {metrics}");
    }
}

#[test]
fn a_finished_pod_is_in_no_list_or_count_but_is_explained_by_name() {
    let Some(cluster) = cluster() else { return };
    let malformed = || json!({ ROLE: "a b" });
    let _over = pod(&cluster, "apps", "over", malformed(), "Failed");
    let _agent = cluster.agent(&[]);
    let _runs = pod(&cluster, "apps", "runs", malformed(), "Running");
    let names = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|one| one["pod"].as_str().unwrap().to_owned()).collect()
    };
    eventually("the one that runs", || {
        names(&run_command(&cluster, &["explain", "--all"])) == ["apps/runs"]
    });
    let status = run_command(&cluster, &["status"]);
    assert_eq!(names(&status["pods"]), ["apps/runs"]);
    assert_eq!(status["podsKnown"], 2);
    let metrics = cluster.node.asked("/metrics");
    let line = "metaproxy_pod_verdicts{verdict=\"refused\"} 1";
    assert!(metrics.lines().any(|found| found == line), "{metrics}");
    let asked = run_command(&cluster, &["explain", "apps/over"]);
    assert_eq!(asked["verdict"], "refused", "{asked:#}");
}

/// EKS Pod Identity, IRSA and static keys set such variables. No SDK falls back from them to the metadata service.
#[test]
fn a_pod_whose_variables_select_other_credentials_is_named_until_they_are_removed() {
    let Some(cluster) = cluster() else { return };
    let pod = cluster.pod("web");
    let put = |env: Value| {
        cluster.api.put(
            "pods",
            json!({
                "metadata": { "name": "web", "namespace": "apps", "uid": pod.uid(), "annotations": { ROLE: "role-web" } },
                "spec": { "nodeName": NODE, "containers": [{ "name": "main", "env": env }] },
                "status": { "phase": "Running" },
            }),
        );
    };
    let uri = "http://169.254.170.23/v1/credentials";
    put(json!([{ "name": "AWS_CONTAINER_CREDENTIALS_FULL_URI", "value": uri }]));
    let _agent = cluster.agent(&["--namespace-policy", "off"]);
    let doctor_says = |wanted: &str| {
        let all = examined(&cluster.node, &[]).all();
        let mut own = all.iter().filter(|found| found.starts_with("credentials: "));
        own.any(|found| found.contains(wanted))
    };
    let named = "apps/web by AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS Pod Identity) -> an SDK takes those";
    eventually("doctor names it", || doctor_says(named));
    let explained = run_command(&cluster, &["explain", "apps/web"]);
    let hint = explained["hints"][0].as_str().unwrap();
    assert!(
        hint.contains("never falls back to the metadata service"),
        "{explained:#}"
    );
    put(json!([]));
    eventually("and then no more", || {
        doctor_says("ok: no pod with a role has variables of other credentials")
    });
}
