//! What a DaemonSet or Deployment tells its container.

use serde_json::Value;

/// A workload of kube2iam or kiam.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// `namespace/name`, with its kind before it; empty of a command line.
    pub name: String,
    /// Command and arguments of its container.
    pub words: Vec<String>,
    /// The image.
    pub image: String,
    /// `nodeSelector` of its pods.
    pub node_selector: Value,
}

impl Workload {
    /// Of a command line.
    pub fn of_words(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
            ..Self::default()
        }
    }

    /// Of an object, where it is one of these.
    pub fn of(object: &Value, of: &str) -> Option<Self> {
        let kind = object["kind"].as_str()?;
        if !matches!(kind, "DaemonSet" | "Deployment") {
            return None;
        }
        let pods = &object["spec"]["template"]["spec"];
        let texts = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        let is_it = |container: &&Value| {
            let image = container["image"].as_str().unwrap_or_default();
            let command = texts(&container["command"]);
            image.contains(of)
                || container["name"].as_str().is_some_and(|name| name.contains(of))
                || command.iter().any(|word| word.contains(of))
        };
        let container = pods["containers"].as_array()?.iter().find(is_it)?;
        let metadata = &object["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap_or("default");
        let mut words = texts(&container["command"]);
        words.extend(texts(&container["args"]));
        Some(Self {
            name: format!("{kind} {}/{}", text("namespace"), text("name")),
            words,
            image: container["image"].as_str().unwrap_or_default().to_owned(),
            node_selector: pods["nodeSelector"].clone(),
        })
    }

    /// Whether it is the part of this name, by its words; kiam has two.
    pub fn is_part(&self, part: &str) -> bool {
        // `kiam server`, or `/server` of version 2.
        self.words
            .iter()
            .any(|word| !word.starts_with('-') && word.rsplit('/').next() == Some(part))
    }

    /// The first number of the image's tag, where that is a version.
    pub fn major_version(&self) -> Option<u32> {
        let (_, tag) = self.image.rsplit_once(':')?;
        tag.trim_start_matches('v').split('.').next()?.parse().ok()
    }
}
