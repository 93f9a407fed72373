//! Finds pod templates by their structure. A list of kinds cannot be complete, because Kubernetes, operators and
//! users define kinds with templates.

use serde_json::Value;

/// A pod template in an object, or the object itself if it is a pod.
#[derive(Clone, Copy, Debug)]
pub struct Template<'a> {
    /// The `metadata` of the template.
    pub metadata: &'a Value,
    /// The `spec` of the template.
    pub spec: &'a Value,
}

/// The maximum depth in an object at which a template is looked for.
const MAX_DEPTH: usize = 24;

/// Returns all templates of an object, in order. A template has a `spec` with a list of `containers`.
pub fn templates(object: &Value) -> Vec<Template<'_>> {
    let mut found = Vec::new();
    collect(object, &mut found, MAX_DEPTH);
    found
}

fn collect<'a>(value: &'a Value, found: &mut Vec<Template<'a>>, depth: usize) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    match value {
        Value::Object(map) => {
            if value["spec"]["containers"].is_array() {
                found.push(Template {
                    metadata: &value["metadata"],
                    spec: &value["spec"],
                });
                return;
            }
            map.values().for_each(|value| collect(value, found, depth));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, found, depth)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn template(name: &str) -> Value {
        json!({ "metadata": { "name": name }, "spec": { "containers": [] } })
    }

    #[rstest]
    #[case::pod(template("a"), &["a"])]
    #[case::deployment(json!({ "spec": { "template": template("a") } }), &["a"])]
    #[case::cron_job(json!({ "spec": { "jobTemplate": { "spec": { "template": template("a") } } } }), &["a"])]
    #[case::several(json!({ "spec": { "roles": [{ "template": template("a") }, { "podTemplate": template("b") }] } }), &["a", "b"])]
    #[case::a_schema(json!({ "spec": { "properties": { "spec": { "containers": { "type": "array" } } } } }), &[])]
    #[case::none(json!({ "spec": { "containers": "text" }, "data": "spec: {containers: []}" }), &[])]
    fn a_template_is_found_at_any_place_of_an_object(#[case] object: Value, #[case] names: &[&str]) {
        let found: Vec<&str> = templates(&object)
            .iter()
            .map(|one| one.metadata["name"].as_str().unwrap())
            .collect();
        assert_eq!(found, names);
    }
}
