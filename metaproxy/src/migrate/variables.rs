//! Reads the environment of a container, and replaces `$(NAME)` in its command line as the kubelet does.

use std::collections::BTreeMap;

use serde_json::Value;

/// The value of a variable.
#[derive(Clone, PartialEq, Eq)]
pub enum Variable {
    /// The manifest has the value.
    Known(String),
    /// The value comes from another source, which is named.
    Elsewhere(String),
}

/// Shows no value, because values may be secret.
impl std::fmt::Debug for Variable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Known(_) => "Known(…)",
            Self::Elsewhere(_) => "Elsewhere",
        })
    }
}

/// The variables of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    known: BTreeMap<String, Variable>,
    /// Whether more variables come from a whole ConfigMap or Secret.
    has_more: bool,
}

impl Variables {
    /// Reads the variables of a container. A value may refer to variables before it.
    pub fn of(container: &Value) -> Self {
        let mut variables = Self {
            known: BTreeMap::new(),
            has_more: container["envFrom"]
                .as_array()
                .is_some_and(|sources| !sources.is_empty()),
        };
        for entry in container["env"].as_array().into_iter().flatten() {
            let Some(name) = entry["name"].as_str() else {
                continue;
            };
            let variable = match source(&entry["valueFrom"]) {
                Some(source) => Variable::Elsewhere(source),
                None => Variable::Known(variables.expand(&text(&entry["value"]))),
            };
            variables.known.insert(name.to_owned(), variable);
        }
        variables
    }

    /// Returns one variable.
    pub fn get(&self, name: &str) -> Option<&Variable> {
        self.known.get(name)
    }

    /// Replaces each `$(NAME)` whose value is known, and leaves the others, as the kubelet does
    /// (`k8s.io/kubernetes/third_party/forked/golang/expansion`); `$$` is a dollar.
    pub fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("$$") {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) = reference(rest) {
                match self.get(name) {
                    Some(Variable::Known(value)) => out.push_str(value),
                    _ => out.push_str(&rest[..rest.len() - after.len()]),
                }
                rest = after;
            } else {
                out.push('$');
                rest = &rest[1..];
            }
        }
        out.push_str(rest);
        out
    }

    /// Says why an expanded text is not known in full.
    pub fn missing(&self, text: &str) -> Option<String> {
        let mut rest = text;
        while let Some(at) = rest.find("$(") {
            rest = &rest[at..];
            let Some((name, after)) = reference(rest) else {
                rest = &rest[2..];
                continue;
            };
            return match self.get(name) {
                Some(Variable::Elsewhere(source)) => Some(format!("{name} comes from {source}")),
                Some(Variable::Known(_)) => {
                    rest = after;
                    continue;
                }
                None if self.has_more => Some(format!(
                    "{name} is not in `env`; a ConfigMap or Secret of `envFrom` may have it"
                )),
                None => Some(format!("{name} is not in the manifest's `env`")),
            };
        }
        None
    }
}

/// Returns the name in a reference at the beginning of a text, and the text after it.
pub fn reference(text: &str) -> Option<(&str, &str)> {
    text.strip_prefix("$(")?.split_once(')')
}

/// Returns a value of `env` as text, because YAML reads some values as numbers.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Names the source of a variable's value.
fn source(from: &Value) -> Option<String> {
    let name = |key: &str| {
        let reference = &from[key];
        let part = |part: &str| reference[part].as_str().unwrap_or("?").to_owned();
        (part("name"), part("key"))
    };
    if let Some(path) = from["fieldRef"]["fieldPath"].as_str() {
        return Some(format!("field {path} of each pod"));
    }
    for (key, kind) in [("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")] {
        if !from[key].is_null() {
            let (name, key) = name(key);
            return Some(format!("{kind} {name}, key {key}"));
        }
    }
    (!from.is_null()).then(|| "valueFrom".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn variables() -> Variables {
        Variables::of(&json!({ "env": [
            { "name": "ACCOUNT", "value": "123456789012" },
            { "name": "BASE", "value": "arn:aws:iam::$(ACCOUNT):role/" },
            { "name": "EARLY", "value": "$(LATE)" },
            { "name": "LATE", "value": "late" },
            { "name": "PORT", "value": 8181 },
            { "name": "HOST_IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
            { "name": "ROLE", "valueFrom": { "configMapKeyRef": { "name": "aws", "key": "role" } } },
        ] }))
    }

    #[rstest]
    #[case::of_another("--base-role-arn=$(BASE)", "--base-role-arn=arn:aws:iam::123456789012:role/")]
    #[case::of_a_later_one("$(EARLY)", "$(LATE)")]
    #[case::a_number("$(PORT)/$(PORT)", "8181/8181")]
    #[case::elsewhere("--host-ip=$(HOST_IP)", "--host-ip=$(HOST_IP)")]
    #[case::escaped("$$(BASE) $5 $", "$(BASE) $5 $")]
    #[case::unknown("$(NOBODY) $(", "$(NOBODY) $(")]
    fn a_reference_is_replaced_as_the_kubelet_does(#[case] text: &str, #[case] expanded: &str) {
        assert_eq!(variables().expand(text), expanded);
    }

    #[rstest]
    #[case("x$(ROLE)", "ROLE comes from ConfigMap aws, key role")]
    #[case("$(HOST_IP)", "HOST_IP comes from field status.podIP of each pod")]
    #[case("$(NOBODY)", "NOBODY is not in the manifest's `env`")]
    fn a_value_that_is_not_in_the_manifest_is_named_with_its_source(#[case] text: &str, #[case] why: &str) {
        assert_eq!(variables().missing(text).as_deref(), Some(why));
    }

    #[test]
    fn a_known_text_is_not_missing_and_env_from_may_have_any_variable() {
        assert_eq!(variables().missing("plain $ text"), None);
        let whole = Variables::of(&json!({ "envFrom": [{ "secretRef": { "name": "s" } }] }));
        assert!(whole.missing("$(X)").unwrap().contains("envFrom"));
    }
}
