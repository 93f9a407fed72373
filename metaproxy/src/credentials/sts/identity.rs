//! Asks STS for the identity of the node.

use std::error::Error;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sts::operation::get_caller_identity::GetCallerIdentityError;
use thiserror::Error;

use super::{Sts, classify, describe, seconds, with_causes};
use crate::credentials::ObtainError;
use crate::roles::RoleArn;
use crate::roles::session_name::SessionName;

/// The shortest session that `AssumeRole` gives (`DurationSeconds`).
const MIN_SESSION_DURATION: Duration = Duration::from_secs(900);

/// Error codes by which `GetCallerIdentity` is refused: by the policy of a VPC endpoint, or by a service that has no
/// such call. Another call gets the same answer.
const REFUSAL_CODES: [&str; 4] = [
    "AccessDenied",
    "AccessDeniedException",
    "InvalidAction",
    "UnknownOperationException",
];

/// Why the node's identity is not known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The SDK's chain of providers has no credentials at the moment.
    #[error("the agent has no AWS credentials: {0}")]
    NoCredentials(String),
    /// STS refuses the call.
    #[error("STS does not say whose the agent's credentials are: {0}")]
    Refused(String),
    /// STS cannot be reached, is busy, or answered with something else.
    #[error("STS cannot be asked whose the agent's credentials are: {0}")]
    Unavailable(String),
}

impl Sts {
    /// Returns the ARN of the node's own credentials (`GetCallerIdentity`, which takes no IAM permission).
    ///
    /// # Errors
    /// Returns an error if there are no credentials, or STS does not answer.
    pub async fn node_arn(&self) -> Result<String, IdentityError> {
        let identity = self
            .node
            .get_caller_identity()
            .send()
            .await
            .map_err(|error| identity_error(&error))?;
        let arn = identity.arn.filter(|arn| !arn.is_empty());
        arn.ok_or_else(|| IdentityError::Unavailable("it answered without an ARN".to_owned()))
    }

    /// Tries whether the node's own credentials may assume a role. The session is the shortest possible, and is
    /// dropped.
    ///
    /// # Errors
    /// Returns why there is no session.
    pub async fn try_assume(&self, role: &RoleArn, name: &SessionName) -> Result<(), ObtainError> {
        let answer = self
            .node
            .assume_role()
            .role_arn(role.as_str())
            .role_session_name(name.as_str())
            .duration_seconds(seconds(MIN_SESSION_DURATION))
            .send()
            .await;
        answer.map(drop).map_err(|error| classify(&error))
    }
}

fn identity_error(error: &SdkError<GetCallerIdentityError>) -> IdentityError {
    if has_no_credentials(error) {
        return IdentityError::NoCredentials(with_causes(error));
    }
    let service = error.as_service_error();
    match service.and_then(|error| error.code()) {
        Some(code) if REFUSAL_CODES.contains(&code) => {
            let message = service.and_then(|error| error.message()).unwrap_or_default();
            IdentityError::Refused(format!("{code}: {message}"))
        }
        _ => IdentityError::Unavailable(describe(error)),
    }
}

fn has_no_credentials(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(CredentialsError::CredentialsNotLoaded(_)) = error.downcast_ref() {
            return true;
        }
        cause = error.source();
    }
    false
}
