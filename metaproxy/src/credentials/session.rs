//! Defines a session, its key, and the reasons why there is no session.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::Serialize;
use thiserror::Error;

use super::cache::{MAX_SESSIONS_AT_ONCE, NEW_SESSION_INTERVAL};
use crate::roles::{Grant, Reason, RoleArn, SessionShape};

/// Everything that shapes a session. Two pods share a session only if all of it is the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The role.
    pub role: RoleArn,
    /// Everything else.
    pub shape: SessionShape,
}

impl SessionKey {
    /// Returns the key of the session that a grant asks for.
    pub fn of_grant(grant: &Grant) -> Self {
        Self {
            role: grant.role.clone(),
            shape: grant.session.clone(),
        }
    }
}

/// The credentials in a response of STS. No `Debug`: they are secret.
pub struct IssuedCredentials<'a> {
    /// `AccessKeyId`
    pub access_key_id: &'a str,
    /// `SecretAccessKey`
    pub secret_access_key: &'a str,
    /// `SessionToken`
    pub token: &'a str,
    /// `Expiration`
    pub expiration: SystemTime,
}

/// Credentials of a role, ready to be served. `Debug` shows nothing secret.
#[derive(Clone)]
pub struct Session(Arc<Parts>);

struct Parts {
    document: Bytes,
    extended: Bytes,
    access_key_id: Box<str>,
    expiration: SystemTime,
    obtained: SystemTime,
}

/// The document of `security-credentials/<role>` as the metadata service writes it. SDKs read these names, and one
/// parses the times strictly, without fractions of a second. Only `security-credentials-extended` has `AccountId`.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

impl Session {
    /// Makes a session. Its documents are written once, here, and all responses share them.
    pub fn new(role: &RoleArn, issued: &IssuedCredentials<'_>, obtained: SystemTime) -> Self {
        let document = |account_id| {
            let document = Document {
                code: "Success",
                last_updated: timestamp(obtained),
                r#type: "AWS-HMAC",
                access_key_id: issued.access_key_id,
                secret_access_key: issued.secret_access_key,
                token: issued.token,
                expiration: timestamp(issued.expiration),
                account_id,
            };
            // A structure of strings always serialises.
            serde_json::to_vec_pretty(&document).unwrap_or_default().into()
        };
        Self(Arc::new(Parts {
            document: document(None),
            extended: document(Some(role.account())),
            access_key_id: issued.access_key_id.into(),
            expiration: issued.expiration,
            obtained,
        }))
    }

    /// Returns the document of `security-credentials/<role>`.
    pub fn document(&self) -> Bytes {
        self.0.document.clone()
    }

    /// Returns the document of `security-credentials-extended/<role>`.
    pub fn extended_document(&self) -> Bytes {
        self.0.extended.clone()
    }

    /// Returns `AccessKeyId`. It is not secret: CloudTrail names a session by it.
    pub fn access_key_id(&self) -> &str {
        &self.0.access_key_id
    }

    /// Returns when it expires.
    pub fn expiration(&self) -> SystemTime {
        self.0.expiration
    }

    /// Returns when STS was called for it.
    pub fn obtained(&self) -> SystemTime {
        self.0.obtained
    }

    /// Returns how long it is still valid; zero when it has expired.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.0.expiration.duration_since(now).unwrap_or_default()
    }

    /// Returns its whole life, from when STS was called to when it expires.
    pub fn life(&self) -> Duration {
        self.0
            .expiration
            .duration_since(self.0.obtained)
            .unwrap_or_default()
    }

    /// Tells whether half of its life is over.
    pub fn is_past_half(&self, now: SystemTime) -> bool {
        self.left(now) < self.life() / 2
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("expiration", &timestamp(self.0.expiration))
            .finish_non_exhaustive()
    }
}

/// Formats a time as `YYYY-MM-DDTHH:MM:SSZ`, rounded down: a client must not expect credentials to live longer than
/// they do.
pub fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Why STS gave no session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ObtainError {
    /// STS refuses until the role, its policies or the configuration change.
    #[error("{0}")]
    Denied(String),
    /// The API server gives no token until its objects, permissions or policies change.
    #[error("{0}")]
    NoToken(String),
    /// STS or the API server cannot be reached, is busy, or did not answer in time.
    #[error("{0}")]
    Unavailable(String),
}

impl ObtainError {
    /// Returns the reason that the pod is answered with.
    pub fn reason(&self, role: &RoleArn) -> Reason {
        let role = role.clone();
        match self {
            Self::Denied(message) => Reason::StsDenied {
                role,
                message: message.clone(),
            },
            Self::NoToken(message) => Reason::TokenDenied {
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

/// Why a request gets no session.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SessionError {
    /// STS gave none.
    #[error(transparent)]
    Obtain(#[from] ObtainError),
    /// The pod has asked for more new sessions than it may have. STS is called when its turn comes.
    #[error("new sessions of the pod are paced")]
    Paced,
    /// No pod has this session any more, so STS is not called for it.
    #[error("the session is no pod's any more")]
    Forgotten,
}

/// Returns the reason for a granted role that has no session because new sessions of its pod are paced.
pub fn paced_reason(grant: &Grant) -> Reason {
    Reason::SessionsPaced {
        role: grant.role.clone(),
        pod: grant.subject.pod.clone(),
        at_once: MAX_SESSIONS_AT_ONCE,
        interval: NEW_SESSION_INTERVAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    fn session() -> Session {
        let obtained = UNIX_EPOCH + Duration::from_millis(1_700_000_000_999);
        let issued = IssuedCredentials {
            access_key_id: "AKID",
            secret_access_key: "SECRET",
            token: "TOKEN",
            expiration: obtained + Duration::from_millis(3_600_123),
        };
        let role = "arn:aws:iam::123456789012:role/app".parse().unwrap();
        Session::new(&role, &issued, obtained)
    }

    #[test]
    fn the_documents_are_those_of_the_metadata_service() {
        let want = r#"{
  "Code": "Success",
  "LastUpdated": "2023-11-14T22:13:20Z",
  "Type": "AWS-HMAC",
  "AccessKeyId": "AKID",
  "SecretAccessKey": "SECRET",
  "Token": "TOKEN",
  "Expiration": "2023-11-14T23:13:21Z""#;
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!(
            text(session().document()),
            format!("{want}\n}}"),
            "no newline, no fractions"
        );
        assert_eq!(
            text(session().extended_document()),
            format!("{want},\n  \"AccountId\": \"123456789012\"\n}}")
        );
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
    fn half_of_the_life_and_the_remaining_life_are_computed() {
        let session = session();
        let at = |seconds| session.obtained() + Duration::from_secs(seconds);
        assert!(!session.is_past_half(at(1799)));
        assert!(session.is_past_half(at(1801)));
        assert_eq!(session.left(at(3500)), Duration::from_millis(100_123));
        assert_eq!(session.left(at(3700)), Duration::ZERO);
    }
}
