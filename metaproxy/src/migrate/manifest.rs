//! The workload of kube2iam or kiam in a manifest, and what its container is told.

use serde_json::Value;

use super::command;
use super::variables::Variables;
use super::versions::Version;
use crate::pods::templates::templates;

/// A workload of kube2iam or kiam.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// `namespace/name`, with its kind before it; empty of a command line.
    pub name: String,
    /// Command and arguments of its container.
    pub words: Vec<String>,
    /// The variables of its container.
    pub variables: Variables,
    /// The image.
    pub image: String,
    /// The pod template, or the pod; null of a command line.
    pub template: Value,
    /// Its container.
    pub container: Value,
}

impl Workload {
    /// Of a command line.
    pub fn of_words(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
            ..Self::default()
        }
    }

    /// Of an object, if it is one of these.
    ///
    /// # Errors
    /// Why its command line can't be read.
    pub fn of(object: &Value, of: &str) -> Result<Option<Self>, String> {
        let Some((template, container)) = templates(object)
            .into_iter()
            .find_map(|template| Some((template, container(template.spec, of)?)))
        else {
            return Ok(None);
        };
        let metadata = &object["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap_or("default");
        let name = format!(
            "{} {}/{}",
            object["kind"].as_str().unwrap_or("object"),
            text("namespace"),
            text("name")
        );
        let mut words = texts(&container["command"]);
        words.extend(texts(&container["args"]));
        let variables = Variables::of(container);
        let words = command::words(&words, &variables, of).map_err(|why| {
            format!(
                "the flags of {name} can't be read: {why}; give them after -- (`metaproxy migrate {of} -- --flag=value …`)"
            )
        })?;
        Ok(Some(Self {
            name,
            words,
            variables,
            image: container["image"].as_str().unwrap_or_default().to_owned(),
            template: serde_json::json!({ "metadata": template.metadata, "spec": template.spec }),
            container: container.clone(),
        }))
    }

    /// Whether it is the part of this name, by its words; kiam has two.
    pub fn is_part(&self, part: &str) -> bool {
        // `kiam server`, or `/server` of version 2.
        self.words
            .iter()
            .any(|word| !word.starts_with('-') && word.rsplit('/').next() == Some(part))
    }

    /// The version that its image's tag tells.
    pub fn version(&self) -> Option<Version> {
        Version::of_image(&self.image)
    }
}

/// The container, by its image, else by its name or command.
fn container<'a>(spec: &'a Value, of: &str) -> Option<&'a Value> {
    let containers = spec["containers"].as_array()?;
    let by_image = |container: &&Value| {
        let image = container["image"].as_str().unwrap_or_default();
        let repository = image.split('@').next().unwrap_or(image);
        let name = repository.rsplit('/').next().unwrap_or(repository);
        name.split(':').next().is_some_and(|name| name.contains(of))
    };
    let by_name = |container: &&Value| {
        container["name"].as_str().is_some_and(|name| name.contains(of))
            || texts(&container["command"]).iter().any(|word| word.contains(of))
    };
    let found = containers.iter().find(by_image);
    found.or_else(|| containers.iter().find(by_name))
}

/// Kind, namespace and name of what made an object. A static pod's copy is owned by its node, which made nothing of it.
pub fn maker(object: &Value) -> Option<(&str, &str, &str)> {
    let metadata = &object["metadata"];
    let owners = metadata["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["kind"] != "Node")?;
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    Some((owner["kind"].as_str()?, namespace, owner["name"].as_str()?))
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}
