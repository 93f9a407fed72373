//! What an explanation is made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::NODE;
use crate::roles::{Principal, SessionShape};

/// Where a role is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedBy {
    /// In words.
    pub source: String,
    /// As written.
    pub value: String,
}

/// What an annotation of the namespace says of the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLine {
    /// Its key.
    pub annotation: String,
    /// Its entries, shortened.
    pub entries: String,
    /// The entry that allows the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_by: Option<String>,
    /// Why it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a session is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionLine {
    /// `RoleSessionName`
    pub name: String,
    /// Who assumes the role.
    pub assumed_by: String,
    /// `ExternalId`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether other pods of the node with the same role have it too.
    pub shared: bool,
}

/// What there is of a session. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsLine {
    /// In words: `valid`, `expired`, `being fetched`, `none`.
    pub state: String,
    /// `AccessKeyId`, by which CloudTrail knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// When it was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Seconds until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// What STS said last, where it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Seconds until STS is asked again for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_to_retry: Option<u64>,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerLine {
    /// Its path.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// What the body says; of credentials, that they are some.
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
