//! Parses manifests. A text may contain several YAML documents or JSON objects, and lists of objects.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::api::{OnlyMetadata, PodObject};
use super::super::{Namespace, ObjectError, Pod, ServiceAccount};

/// The objects of a file.
#[derive(Debug, Default)]
pub struct Objects {
    /// The objects of kind Pod.
    pub pods: Vec<Arc<Pod>>,
    /// The objects of kind Namespace.
    pub namespaces: Vec<Arc<Namespace>>,
    /// The objects of kind ServiceAccount.
    pub service_accounts: Vec<Arc<ServiceAccount>>,
    /// The errors of objects that were ignored.
    pub problems: Vec<ParseError>,
}

/// An error of a manifest, with its line (from 1).
#[derive(Debug, PartialEq, Eq)]
pub struct ParseError {
    line: usize,
    what: String,
}

impl ParseError {
    /// Makes an error of a line.
    pub fn new(line: usize, what: String) -> Self {
        Self { line, what }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.what)
    }
}

/// The fields that state the type of an object.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    kind: Option<String>,
    api_version: Option<String>,
}

impl TypeMeta {
    /// Reports whether it may be a core object, because other groups have kinds of the same names.
    fn is_core(&self) -> bool {
        self.api_version.as_deref().is_none_or(|version| version == "v1")
    }
}

/// A list of objects, as `kubectl get -o yaml` prints it for several objects.
#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

/// A document in either notation, which can be deserialized as several types in turn.
trait Document {
    fn read<T: DeserializeOwned>(&self) -> Result<T, ParseError>;
    fn items(&self) -> Result<Vec<serde_json::Value>, ParseError> {
        Ok(self.read::<List<serde_json::Value>>()?.items)
    }
    fn line(&self) -> usize;
}

struct YamlDocument<'a> {
    text: &'a str,
    first_line: usize,
}

impl Document for YamlDocument<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, ParseError> {
        // Merge keys of YAML 1.1 (`<<: *anchor`) are applied, as kubectl does.
        let read = if self.text.contains("<<") {
            merged(self.text)
        } else {
            serde_yaml_ng::from_str(self.text)
        };
        read.map_err(|error| {
            let line = error.location().map_or(1, |location| location.line());
            ParseError::new(self.first_line + line - 1, error.to_string())
        })
    }

    fn line(&self) -> usize {
        self.first_line
    }
}

fn merged<T: DeserializeOwned>(text: &str) -> Result<T, serde_yaml_ng::Error> {
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(text)?;
    value.apply_merge()?;
    serde_yaml_ng::from_value(value)
}

struct JsonDocument {
    value: serde_json::Value,
    first_line: usize,
}

impl Document for JsonDocument {
    fn read<T: DeserializeOwned>(&self) -> Result<T, ParseError> {
        T::deserialize(&self.value).map_err(|error| ParseError::new(self.first_line, error.to_string()))
    }

    fn line(&self) -> usize {
        self.first_line
    }
}

/// Parses YAML documents, which lines that begin with `---` separate. The documents are separated before they are
/// parsed, so that the line of every kind of error is known.
///
/// # Errors
/// The first document that cannot be parsed.
pub fn yaml(text: &str) -> Result<Objects, ParseError> {
    let mut objects = Objects::default();
    for document in yaml_documents(text) {
        objects.add(&document)?;
    }
    Ok(objects)
}

fn yaml_documents(text: &str) -> Vec<YamlDocument<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut first_line, mut position) = (0, 1, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let marker = line.trim_end();
        if marker == "---" || marker.starts_with("--- ") || marker == "..." {
            documents.push(YamlDocument {
                text: &text[start..position],
                first_line,
            });
            // The text after `--- ` belongs to the document.
            start = position + 3;
            first_line = index + 1;
        }
        position += line.len();
    }
    documents.push(YamlDocument {
        text: &text[start..],
        first_line,
    });
    documents.retain(|document| {
        document
            .text
            .lines()
            .any(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#'))
    });
    documents
}

/// Parses JSON objects, one after the other.
///
/// # Errors
/// The first object that cannot be parsed.
pub fn json(text: &str) -> Result<Objects, ParseError> {
    let mut objects = Objects::default();
    for document in json_documents(text)? {
        objects.add(&document)?;
    }
    Ok(objects)
}

fn json_documents(text: &str) -> Result<Vec<JsonDocument>, ParseError> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>();
    loop {
        let skipped = text[values.byte_offset()..].len() - text[values.byte_offset()..].trim_start().len();
        let first_line = 1 + text[..values.byte_offset() + skipped].matches('\n').count();
        match values.next() {
            None => return Ok(documents),
            Some(Ok(value)) => documents.push(JsonDocument { value, first_line }),
            Some(Err(error)) => return Err(ParseError::new(error.line().max(1), error.to_string())),
        }
    }
}

fn values_of_yaml(text: &str) -> Result<Vec<JsonDocument>, ParseError> {
    let read = |document: YamlDocument<'_>| {
        let first_line = document.line();
        document.read().map(|value| JsonDocument { value, first_line })
    };
    yaml_documents(text).into_iter().map(read).collect()
}

/// Returns every object of a text in either notation and of any kind, with its line. The objects of lists are
/// returned one by one.
///
/// # Errors
/// The first document that cannot be parsed.
pub fn objects(text: &str) -> Result<Vec<(usize, serde_json::Value)>, ParseError> {
    let documents = if text.trim_start().starts_with('{') {
        // A YAML object may begin with a brace too. If the text is neither YAML nor JSON, the error is that of JSON.
        json_documents(text).or_else(|broken| values_of_yaml(text).map_err(|_| broken))?
    } else {
        values_of_yaml(text)?
    };
    let mut found = Vec::new();
    for document in documents {
        let is_list = document.value["kind"]
            .as_str()
            .is_some_and(|kind| kind.ends_with("List"));
        let line = document.line();
        if is_list {
            found.extend(document.items()?.into_iter().map(|item| (line, item)));
        } else {
            found.push((line, document.value));
        }
    }
    Ok(found)
}

impl Objects {
    fn add(&mut self, document: &impl Document) -> Result<(), ParseError> {
        let what = document.read::<TypeMeta>()?;
        let problem = match what.kind.as_deref() {
            Some("Pod" | "Namespace" | "ServiceAccount") if !what.is_core() => return Ok(()),
            Some("Pod") => self.add_pod(document.read()?),
            Some("Namespace") => self.add_namespace(document.read()?),
            Some("ServiceAccount") => self.add_service_account(document.read()?),
            Some(kind) if kind.ends_with("List") => {
                for value in document.items()? {
                    self.add(&JsonDocument {
                        value,
                        first_line: document.line(),
                    })?;
                }
                return Ok(());
            }
            // The directory may contain manifests of other kinds.
            Some(_) => return Ok(()),
            None => {
                return Err(ParseError::new(
                    document.line(),
                    "an object without `kind`".to_owned(),
                ));
            }
        };
        if let Err(problem) = problem {
            self.problems
                .push(ParseError::new(document.line(), problem.to_string()));
        }
        Ok(())
    }

    fn add_pod(&mut self, pod: PodObject) -> Result<(), ObjectError> {
        self.pods.push(Arc::new(Pod::from_api(pod)?));
        Ok(())
    }

    fn add_namespace(&mut self, namespace: OnlyMetadata) -> Result<(), ObjectError> {
        self.namespaces
            .push(Arc::new(Namespace::from_api(namespace.metadata)?));
        Ok(())
    }

    fn add_service_account(&mut self, account: OnlyMetadata) -> Result<(), ObjectError> {
        self.service_accounts
            .push(Arc::new(ServiceAccount::from_api(account.metadata)?));
        Ok(())
    }
}
