//! Defines the outcome of a request, as a value. [`super::response`] turns it into bytes. Logs, events and metrics
//! observe it when the response is sent. An explanation shows it in words.

use thiserror::Error;

use super::passthrough::{NodeAnswer, PassthroughError};
use super::path::Refusal;
use super::token::{MAX_TTL, TokenKeyError};
use crate::credentials::{Session, timestamp};
use crate::roles::{Reason, RoleArn};

/// The outcome of a request.
#[derive(Debug)]
pub enum Outcome {
    /// The entries below `iam/`.
    IamEntries,
    /// The name of the pod's role, as `security-credentials/` lists it.
    RoleName(String),
    /// `iam/info` of the pod's role.
    RoleInfo(RoleArn),
    /// The pod's credentials.
    Credentials {
        /// The session that is served.
        session: Session,
        /// Whether `security-credentials-extended` was requested, whose document also names the account.
        extended: bool,
    },
    /// A new session token.
    Token {
        /// The text of the token.
        token: String,
        /// Its lifetime in seconds.
        ttl: u64,
    },
    /// Metadata of the node.
    Node(Box<NodeAnswer>),
    /// The pod has no role.
    NoRole(Reason),
    /// The pod is refused the role that it asks for.
    Refused(Reason),
    /// The role or its credentials are not available at the moment.
    Unavailable(Reason),
    /// The request names another role than the pod's, which is `own`.
    OtherRole {
        /// The name of the pod's own role.
        own: String,
    },
    /// The path is not served to pods.
    PathRefused(Refusal),
    /// The request has no valid session token.
    Unauthorized(TokenProblem),
    /// The request is not one of the metadata protocol.
    Invalid(InvalidRequest),
    /// No token can be issued at the moment.
    TokenUnavailable(TokenKeyError),
    /// The node's metadata service gave no answer that can be passed on.
    NodeUnavailable(PassthroughError),
}

/// Why a request is answered 401.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenProblem {
    /// The token does not belong to this pod, has expired, or several different ones were sent.
    #[error(
        "The session token has expired, or was not issued to this pod. Get another one with PUT /latest/api/token."
    )]
    Invalid,
    /// There is no token.
    #[error("Requests need a session token here (IMDSv2). Get one with PUT /latest/api/token.")]
    Missing,
    /// There is no token, and it is not known yet whether the node requires one.
    #[error(
        "It is not known yet whether requests need a session token. Get one with PUT /latest/api/token, or try again."
    )]
    PolicyUnknown,
}

/// Why a request is not one of the metadata protocol.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidRequest {
    /// It came through a proxy.
    #[error("A request with X-Forwarded-For came through a proxy and is not answered.")]
    Forwarded,
    /// Its target is not a path.
    #[error("A metadata request names a path only, without a host before it.")]
    Target,
    /// The token path was requested with a method other than PUT.
    #[error("Session tokens are issued by PUT.")]
    TokenMethod,
    /// Another path was requested with a method other than GET or HEAD.
    #[error("Metadata is read by GET.")]
    Method,
    /// The lifetime of the token is missing, is not a number, or is out of range.
    #[error("X-aws-ec2-metadata-token-ttl-seconds must be a number from 1 to {MAX_TTL}.")]
    TokenTtl,
    /// It has a body that is too long to be skipped.
    #[error("Metadata requests have no body.")]
    BodyTooLong,
    /// Its body did not arrive in time.
    #[error("The body of the request did not arrive in time.")]
    BodyTimeout,
}

impl Outcome {
    /// Returns why the pod has no role or no credentials, if that is what the outcome says.
    pub fn reason(&self) -> Option<&Reason> {
        match self {
            Self::NoRole(reason) | Self::Refused(reason) | Self::Unavailable(reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns the sentence that explains a failure to the reader of the response; `None` for a success.
    pub fn sentence(&self) -> Option<String> {
        let sentence = match self {
            Self::IamEntries
            | Self::RoleName(_)
            | Self::RoleInfo(_)
            | Self::Credentials { .. }
            | Self::Token { .. }
            | Self::Node(_) => return None,
            Self::NoRole(reason) | Self::Refused(reason) | Self::Unavailable(reason) => reason.to_string(),
            Self::OtherRole { own } => format!("This pod's role is {own}."),
            Self::PathRefused(refusal) => refusal.to_string(),
            Self::Unauthorized(problem) => problem.to_string(),
            Self::Invalid(problem) => problem.to_string(),
            Self::TokenUnavailable(_) => "No session token can be issued at the moment.".to_owned(),
            Self::NodeUnavailable(error) => error.to_string(),
        };
        Some(sentence)
    }

    /// Describes the outcome to operators, without anything secret.
    pub fn summary(&self) -> String {
        if let Some(sentence) = self.sentence() {
            return match self {
                Self::Refused(_) => format!("{}: {sentence}", super::response::REFUSED_CODE),
                _ => sentence,
            };
        }
        match self {
            Self::Credentials { session, .. } => format!(
                "credentials {} until {}",
                session.access_key_id(),
                timestamp(session.expiration())
            ),
            Self::RoleName(name) => name.clone(),
            Self::RoleInfo(role) => format!("the profile of role {role}"),
            Self::IamEntries => "the entries of iam/".to_owned(),
            Self::Token { ttl, .. } => format!("a session token for {ttl} s"),
            _ => "what the node's metadata service answers".to_owned(),
        }
    }
}
