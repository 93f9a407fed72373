//! Finds the workload of kube2iam or kiam in a manifest, and the flags of its container.

use serde_json::Value;

use super::command;
use super::template::name;
use super::variables::Variables;
use super::versions::Version;
use crate::pods::templates::templates;

/// A workload of kube2iam or kiam.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// The kind and `namespace/name`; empty if a command line was given.
    pub name: String,
    /// The command and arguments of the container.
    pub words: Vec<String>,
    /// The part of kiam: `agent` or `server`.
    pub part: Option<String>,
    /// The variables of the container.
    pub variables: Variables,
    /// The image.
    pub image: String,
    /// The pod template, or the pod; null if a command line was given.
    pub template: Value,
    /// The container.
    pub container: Value,
}

impl Workload {
    /// Makes a workload from a command line.
    pub fn of_words(words: &[String]) -> Self {
        Self {
            words: words.to_vec(),
            ..Self::default()
        }
    }

    /// Makes a workload from an object; `None` if it is not one of this software.
    ///
    /// # Errors
    /// If its command line cannot be read; the error says why.
    pub fn of(object: &Value, of: &str) -> Result<Option<Self>, String> {
        let metadata = &object["metadata"];
        let text = |name: &str| metadata[name].as_str().unwrap_or("default");
        let name = format!(
            "{} {}/{}",
            object["kind"].as_str().unwrap_or("object"),
            text("namespace"),
            text("name")
        );
        let unreadable = |why: String| {
            format!(
                "the flags of {name} can't be read: {why}; give them after -- (`metaproxy migrate {of} -- --flag=value …`)"
            )
        };
        let mut found = Vec::new();
        for template in templates(object) {
            let container = container(template.spec, of).map_err(unreadable)?;
            found.extend(container.map(|container| (template, container)));
        }
        let (template, container) = match found[..] {
            [] => return Ok(None),
            [one] => one,
            _ => {
                return Err(unreadable(format!(
                    "{} of its pod templates have it",
                    found.len()
                )));
            }
        };
        let variables = Variables::of(container);
        let words = command_line(container)
            .and_then(|words| command::words(&words, &variables, of))
            .map_err(unreadable)?;
        Ok(Some(Self {
            name,
            words,
            part: None,
            variables,
            image: container["image"].as_str().unwrap_or_default().to_owned(),
            template: serde_json::json!({ "metadata": template.metadata, "spec": template.spec }),
            container: container.clone(),
        }))
    }

    /// Reports whether this is the part with the name, of which kiam has two.
    pub fn is_part(&self, part: &str) -> bool {
        self.part.as_deref() == Some(part)
    }

    /// Returns the version in the image's tag.
    pub fn version(&self) -> Option<Version> {
        Version::of_image(&self.image)
    }
}

/// Finds the container: the one whose command line names the program, else the one with its image, else the only one
/// with its name.
///
/// # Errors
/// If several containers may be the right one.
fn container<'a>(spec: &'a Value, of: &str) -> Result<Option<&'a Value>, String> {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let candidates: Vec<&Value> = containers
        .filter(|container| is_candidate(container, of))
        .collect();
    let own = |container: &&&Value| {
        let words = command_line(container).unwrap_or_default();
        command::names_program(&words, &Variables::of(container), of)
    };
    // A command replaces the image's program.
    let by_image = |container: &&&Value| container["command"].is_null() && repository(container) == of;
    let ways: [&dyn Fn(&&&Value) -> bool; 3] = [&own, &by_image, &|_| true];
    for way in ways {
        let found: Vec<&Value> = candidates.iter().filter(way).copied().collect();
        match found[..] {
            [] => {}
            [one] => return Ok(Some(one)),
            _ => {
                let names: Vec<&str> = found.iter().map(|container| name(container)).collect();
                return Err(format!("any of its containers {} may be {of}", names.join(", ")));
            }
        }
    }
    Ok(None)
}

/// Reports whether the name occurs anywhere in a container.
fn is_candidate(container: &Value, of: &str) -> bool {
    let is_called = |text: &Value| text.as_str().is_some_and(|text| text.contains(of));
    let command = container["command"].as_array().into_iter().flatten();
    repository(container).contains(of)
        || is_called(&container["name"])
        || command
            .chain(container["args"].as_array().into_iter().flatten())
            .any(is_called)
}

/// Returns the last part of the image's name, without tag and digest.
fn repository(container: &Value) -> &str {
    let image = container["image"].as_str().unwrap_or_default();
    let repository = image.split('@').next().unwrap_or(image);
    let name = repository.rsplit('/').next().unwrap_or(repository);
    name.split(':').next().unwrap_or(name)
}

/// Returns command and arguments.
///
/// # Errors
/// If one of the two is not a list of strings; the error names it.
fn command_line(container: &Value) -> Result<Vec<String>, String> {
    let mut words = texts("command", &container["command"])?;
    words.extend(texts("args", &container["args"])?);
    Ok(words)
}

/// Returns kind, namespace and name of the object's owner. A node does not count: it owns the copy of a static pod,
/// which nothing else in a manifest describes.
pub fn maker(object: &Value) -> Option<(&str, &str, &str)> {
    let metadata = &object["metadata"];
    let owners = metadata["ownerReferences"].as_array()?;
    let owner = owners.iter().find(|owner| owner["kind"] != "Node")?;
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    Some((owner["kind"].as_str()?, namespace, owner["name"].as_str()?))
}

fn texts(what: &str, value: &Value) -> Result<Vec<String>, String> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    let items = value
        .as_array()
        .map(|items| items.iter().map(Value::as_str).collect());
    let texts: Option<Vec<&str>> = items.flatten();
    let texts =
        texts.ok_or_else(|| format!("its {what} is no list of strings, which Kubernetes does not take"))?;
    Ok(texts.into_iter().map(str::to_owned).collect())
}
