//! Finds the places of an object in which an annotation about roles is not read.

use serde_json::Value;

use super::taken::Taken;
use crate::roles::{AnnotationKeys, web_identity};

/// The maximum depth to which an object is searched.
const MAX_DEPTH: usize = 64;

/// Fields that are not searched, because they repeat other parts of the object or report its state.
const COPIES: [&str; 3] = [
    "metadata.annotations.kubectl.kubernetes.io/last-applied-configuration",
    "metadata.managedFields",
    "status",
];

/// A place that has an annotation about roles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occurrence {
    /// The annotation's key.
    pub key: String,
    /// The path of fields to the place, such as `spec.podAnnotations`.
    pub path: String,
    /// Whether the place is a text that holds the annotation, such as a manifest in a ConfigMap.
    pub in_text: bool,
}

/// Returns the keys that give a role or shape a pod's session.
pub fn keys_of_roles(keys: &AnnotationKeys) -> [&str; 4] {
    [
        &keys.role,
        &keys.external_id,
        &keys.session_name,
        web_identity::ROLE_KEY,
    ]
}

/// Returns the places of an object that are not read.
pub fn unread(object: &Value, taken: &Taken<'_>, keys: &AnnotationKeys) -> Vec<Occurrence> {
    let mut search = Search {
        taken,
        root: object,
        keys: keys_of_roles(keys),
        path: Vec::new(),
        found: Vec::new(),
    };
    search.look(object, false);
    search.found
}

struct Search<'a> {
    taken: &'a Taken<'a>,
    root: &'a Value,
    keys: [&'a str; 4],
    path: Vec<String>,
    found: Vec<Occurrence>,
}

impl Search<'_> {
    /// Searches a value. Texts in the spec of a pod are not searched: they are arguments or values of variables.
    fn look(&mut self, value: &Value, in_spec: bool) {
        if self.path.len() > MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                let in_spec = in_spec || self.taken.is_spec(value);
                for (name, below) in map {
                    if self.keys.contains(&name.as_str()) && !self.taken.reads(self.root, value, name) {
                        self.add(name, false);
                    }
                    self.path.push(name.clone());
                    if !COPIES.contains(&self.path.join(".").as_str()) {
                        self.look(below, in_spec);
                    }
                    self.path.pop();
                }
            }
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.path.push(index.to_string());
                    self.look(item, in_spec);
                    self.path.pop();
                }
            }
            Value::String(text) if !in_spec => {
                for key in self.keys.into_iter().filter(|key| names(text, key)) {
                    self.add(key, true);
                }
            }
            _ => {}
        }
    }

    fn add(&mut self, key: &str, in_text: bool) {
        self.found.push(Occurrence {
            key: key.to_owned(),
            path: self.path.join("."),
            in_text,
        });
    }
}

/// Says whether a text gives an annotation a value, in YAML or JSON. A text that only mentions the key does not.
pub fn names(text: &str, key: &str) -> bool {
    text.match_indices(key).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let behind = text[at + key.len()..]
            .trim_start_matches(['\\', '"', '\''])
            .trim_start();
        let begins = before.is_none_or(|before| before.is_whitespace() || "{,\"'".contains(before));
        begins && behind.starts_with(':')
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::yaml("metadata:\n  annotations:\n    iam.amazonaws.com/role: app\n", true)]
    #[case::quoted("{'iam.amazonaws.com/role': app}", true)]
    #[case::json("{\"iam.amazonaws.com/role\" : \"app\"}", true)]
    #[case::json_in_json("{\\\"iam.amazonaws.com/role\\\": 1}", true)]
    #[case::spoken_of("iam.amazonaws.com/role is an annotation", false)]
    #[case::a_flag("--role-annotation=iam.amazonaws.com/role", false)]
    #[case::an_expression("object.metadata.annotations['iam.amazonaws.com/role'] != ''", false)]
    #[case::a_longer_key("iam.amazonaws.com/role-arn: x", false)]
    #[case::another_domain("x.iam.amazonaws.com/role: x", false)]
    fn a_text_counts_only_if_it_gives_the_annotation_a_value(#[case] text: &str, #[case] gives: bool) {
        assert_eq!(names(text, "iam.amazonaws.com/role"), gives);
    }
}
