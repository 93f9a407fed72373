//! Evaluates the expressions of the admission policies as the API server does: an error counts as a refusal
//! (`failurePolicy: Fail`), and fields that are not set are null.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use cel::objects::Key;
use cel::{Context, Env, Value};
use serde::Deserialize as _;
use serde_json::{Value as Json, json};

use super::root;

mod taint;

/// A policy of the golden file.
struct Policy {
    condition: String,
    validations: Vec<String>,
}

fn policy(name: &str) -> Policy {
    let text = fs::read_to_string(root().join("deploy/helm/tests/golden/web-identity.yaml")).unwrap();
    let documents =
        serde_yaml_ng::Deserializer::from_str(&text).map(|document| Json::deserialize(document).unwrap());
    let policy = documents
        .into_iter()
        .find(|document| {
            document["kind"] == "ValidatingAdmissionPolicy" && document["metadata"]["name"] == name
        })
        .unwrap();
    let expression = |object: &Json| object["expression"].as_str().unwrap().to_owned();
    assert_eq!(policy["spec"]["failurePolicy"], "Fail");
    let conditions = policy["spec"]["matchConditions"].as_array().unwrap();
    assert_eq!(conditions.len(), 1);
    Policy {
        condition: expression(&conditions[0]),
        validations: policy["spec"]["validations"]
            .as_array()
            .unwrap()
            .iter()
            .map(expression)
            .collect(),
    }
}

fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::Null,
        Json::Bool(bool) => Value::Bool(*bool),
        Json::Number(number) => Value::Int(number.as_i64().unwrap()),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::List(Arc::new(items.iter().map(value).collect())),
        Json::Object(fields) => {
            let fields = fields
                .iter()
                .map(|(key, field)| (Key::from(key.as_str()), value(field)));
            Value::Map(fields.collect::<HashMap<_, _>>().into())
        }
    }
}

fn holds(expression: &str, object: &Json, request: &Json) -> bool {
    holds_of_change(expression, &Json::Null, object, request)
}

fn holds_of_change(expression: &str, old: &Json, object: &Json, request: &Json) -> bool {
    let env = Arc::new(Env::stdlib());
    let program = env.compile(expression).unwrap();
    let mut context = Context::with_env(env);
    context.add_variable_from_value("object", value(object));
    context.add_variable_from_value("oldObject", value(old));
    context.add_variable_from_value("request", value(request));
    matches!(program.execute(&context), Ok(Value::Bool(true)))
}

fn request(user: &str) -> Json {
    json!({ "userInfo": { "username": user, "groups": ["system:serviceaccounts", "system:authenticated"] } })
}

/// Returns a request for a token, as the agent sends it.
fn sound() -> Json {
    json!({ "spec": {
        "audiences": ["sts.amazonaws.com"],
        "expirationSeconds": 600,
        "boundObjectRef": { "kind": "Pod", "apiVersion": "v1", "name": "web", "uid": "u1" },
    }})
}

fn with(pointer: &str, field: Json) -> Json {
    let mut object = sound();
    *object.pointer_mut(pointer).unwrap() = field;
    object
}

#[test]
fn it_is_about_the_agents_own_account_and_no_other() {
    let policy = policy("metaproxy-tokens");
    let asked = |user: &str| holds(&policy.condition, &sound(), &request(user));
    assert!(asked("system:serviceaccount:kube-system:metaproxy"));
    for other in [
        "system:serviceaccount:kube-system:metaproxy2",
        "system:serviceaccount:default:metaproxy",
        "system:node:node1",
        "admin",
    ] {
        assert!(!asked(other), "{other}");
    }
}

#[test]
fn what_the_agent_asks_for_passes_and_nothing_else() {
    let policy = policy("metaproxy-tokens");
    let passes = |object: &Json| {
        let request = request("system:serviceaccount:kube-system:metaproxy");
        policy
            .validations
            .iter()
            .all(|expression| holds(expression, object, &request))
    };
    assert!(passes(&sound()));
    assert!(
        passes(&with("/spec/audiences", json!(["sts.amazonaws.com.cn"]))),
        "the other audience of the values"
    );
    assert!(passes(&with("/spec/expirationSeconds", json!(3600))));
    for (pointer, field) in [
        ("/spec/audiences", json!([])),
        ("/spec/audiences", json!(null)),
        ("/spec/audiences", json!(["https://kubernetes.default.svc"])),
        (
            "/spec/audiences",
            json!(["sts.amazonaws.com", "https://kubernetes.default.svc"]),
        ),
        ("/spec/audiences", json!(["sts.amazonaws.com.evil.example"])),
        ("/spec/boundObjectRef", json!(null)),
        (
            "/spec/boundObjectRef",
            json!({ "kind": "Secret", "apiVersion": "v1", "name": "web", "uid": "u1" }),
        ),
        (
            "/spec/boundObjectRef",
            json!({ "kind": "Node", "apiVersion": "v1", "name": "web", "uid": "u1" }),
        ),
        ("/spec/boundObjectRef/kind", json!("pod")),
        ("/spec/boundObjectRef/apiVersion", json!("v2")),
        ("/spec/boundObjectRef/name", json!("")),
        ("/spec/boundObjectRef/uid", json!("")),
        (
            "/spec/boundObjectRef",
            json!({ "kind": "Pod", "apiVersion": "v1", "name": "web" }),
        ),
        ("/spec/expirationSeconds", json!(3601)),
        ("/spec/expirationSeconds", json!(null)),
    ] {
        assert!(!passes(&with(pointer, field.clone())), "{pointer} = {field}");
    }
}
