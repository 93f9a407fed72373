//! The parts of an explanation. Their fields are those of `--output json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NODE;
use crate::roles::{Principal, SessionShape};

/// The source that gives a role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedBy {
    /// The source in words.
    pub source: String,
    /// The role as written.
    pub value: String,
}

/// The opinion of an annotation of the namespace about the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLine {
    /// The annotation's key.
    pub annotation: String,
    /// The annotation's entries, shortened.
    pub entries: String,
    /// The entry that allows the role, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_by: Option<String>,
    /// Why the annotation is malformed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// The parameters of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionLine {
    /// The `RoleSessionName`.
    pub name: String,
    /// The principal that assumes the role.
    pub assumed_by: String,
    /// The `ExternalId`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// The session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether other pods of the node with the same role share it.
    pub shared: bool,
}

/// The state of a session. Times are in RFC 3339, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsLine {
    /// One of `valid`, `expired`, `waiting for the pod's turn`, `being fetched`, `none`.
    pub state: String,
    /// The `AccessKeyId`, which CloudTrail shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// The time at which it was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained: Option<String>,
    /// The time at which it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// The seconds until it expires.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The last error of STS, if the last attempt failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The seconds until a request makes the agent call STS again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_to_retry: Option<u64>,
}

/// A request and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerLine {
    /// The request's path.
    pub path: String,
    /// The HTTP status.
    pub status: u16,
    /// The text of the body. For credentials it has only the access key id and the expiry.
    pub says: String,
}

impl SessionLine {
    pub(super) fn of(shape: &SessionShape) -> Self {
        Self {
            name: shape.name.to_string(),
            assumed_by: match &shape.principal {
                Principal::Node => NODE.to_owned(),
                Principal::ServiceAccount(identity) => format!(
                    "service account {}/{}, by web identity (audience {})",
                    identity.namespace, identity.service_account, identity.audience
                ),
            },
            external_id: shape.external_id.clone(),
            tags: shape
                .tags
                .pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            shared: shape.pod.is_none(),
        }
    }
}
