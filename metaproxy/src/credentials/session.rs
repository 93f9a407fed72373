//! A session and what identifies it.

use std::fmt;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;

use crate::pods::PodUid;
use crate::roles::session_name::SessionName;
use crate::roles::{Grant, Reason, RoleArn};

/// Who assumes the role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// The node's own role, perhaps through others, in order.
    Node {
        /// Roles that are assumed first (`--assume-role-arn`).
        through: Option<RoleArn>,
    },
    /// A pod's service account, by a token that is bound to the pod.
    WebIdentity {
        /// `namespace/name` of the service account.
        service_account: String,
        /// The token's audience.
        audience: String,
    },
}

/// Everything that shapes a session: two pods share one only where all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The role.
    pub role: RoleArn,
    /// Who assumes it.
    pub principal: Principal,
    /// `ExternalId`
    pub external_id: Option<String>,
    /// `RoleSessionName`
    pub session_name: SessionName,
    /// Session tags, in order of their keys.
    pub tags: Vec<(String, String)>,
    /// The pod, where each has a session of its own.
    pub pod: Option<PodUid>,
}

impl SessionKey {
    /// The session that a grant asks for, one per pod.
    pub fn of_grant(grant: &Grant) -> Self {
        Self {
            role: grant.role.clone(),
            principal: Principal::Node { through: None },
            external_id: grant.external_id.clone(),
            session_name: grant.session_name.clone(),
            tags: Vec::new(),
            pod: Some(grant.subject.uid.clone()),
        }
    }
}

/// Credentials of a role, ready to be served. `Debug` shows nothing secret.
#[derive(Clone)]
pub struct Session {
    document: Bytes,
    expiration: SystemTime,
    obtained: SystemTime,
}

/// The document of `security-credentials/<role>` as the metadata service writes it: botocore, the Java SDK and others
/// read these names, and one SDK parses the times strictly, without fractions.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    code: &'a str,
    last_updated: String,
    r#type: &'a str,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    expiration: String,
}

impl Session {
    /// From what STS answers. The document is written once, here, and shared by all answers.
    pub fn new(
        access_key_id: &str,
        secret_access_key: &str,
        token: &str,
        expiration: SystemTime,
        obtained: SystemTime,
    ) -> Self {
        let document = Document {
            code: "Success",
            last_updated: timestamp(obtained),
            r#type: "AWS-HMAC",
            access_key_id,
            secret_access_key,
            token,
            expiration: timestamp(expiration),
        };
        // Strings only, which always serialise.
        let document = serde_json::to_vec_pretty(&document).unwrap_or_default();
        Self {
            document: document.into(),
            expiration,
            obtained,
        }
    }

    /// The answer to `GET security-credentials/<role>`.
    pub fn document(&self) -> Bytes {
        self.document.clone()
    }

    /// What is left of it; zero when it has expired.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.expiration.duration_since(now).unwrap_or_default()
    }

    /// Whether half of its life is over.
    pub fn is_past_half(&self, now: SystemTime) -> bool {
        let life = self.expiration.duration_since(self.obtained).unwrap_or_default();
        self.left(now) < life / 2
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("expiration", &timestamp(self.expiration))
            .finish_non_exhaustive()
    }
}

/// `YYYY-MM-DDTHH:MM:SSZ`, rounded down: a client must never believe in more than there is.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Why there is no session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ObtainError {
    /// STS will not, until somebody changes something.
    #[error("{0}")]
    Denied(String),
    /// STS can't be reached, or did not answer in time, or is busy.
    #[error("{0}")]
    Unavailable(String),
}

impl ObtainError {
    /// For the role's pod.
    pub fn reason(&self, role: &RoleArn) -> Reason {
        let role = role.clone();
        match self {
            Self::Denied(message) => Reason::StsDenied {
                role,
                message: message.clone(),
            },
            Self::Unavailable(message) => Reason::StsUnavailable {
                role,
                message: message.clone(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn session() -> Session {
        let obtained = UNIX_EPOCH + Duration::from_millis(1_700_000_000_999);
        Session::new(
            "AKID",
            "SECRET",
            "TOKEN",
            obtained + Duration::from_secs(3600),
            obtained,
        )
    }

    #[test]
    fn the_document_is_that_of_the_metadata_service() {
        let value: serde_json::Value = serde_json::from_slice(&session().document()).unwrap();
        let want = serde_json::json!({
            "Code": "Success", "LastUpdated": "2023-11-14T22:13:20Z", "Type": "AWS-HMAC", "AccessKeyId": "AKID",
            "SecretAccessKey": "SECRET", "Token": "TOKEN", "Expiration": "2023-11-14T23:13:20Z",
        });
        assert_eq!(value, want);
    }

    #[test]
    fn nothing_secret_is_shown_by_debug() {
        let shown = format!("{:?}", session());
        assert!(
            !shown.contains("SECRET") && !shown.contains("TOKEN") && !shown.contains("AKID"),
            "{shown}"
        );
    }

    #[test]
    fn half_life_and_what_is_left() {
        let session = session();
        let at = |seconds| session.obtained + Duration::from_secs(seconds);
        assert!(!session.is_past_half(at(1799)));
        assert!(session.is_past_half(at(1801)));
        assert_eq!(session.left(at(3500)), Duration::from_secs(100));
        assert_eq!(session.left(at(3700)), Duration::ZERO);
    }
}
