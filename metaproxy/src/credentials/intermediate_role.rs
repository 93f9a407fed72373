//! The intermediate role of role chaining (`--assume-role-arn`): the node assumes it, and it assumes the pods' roles.
//! It takes the place of kiam's server role, which the trust policies of the pods' roles name.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_sts::Client;
use tokio::time::Instant;

use super::ObtainError;
use super::sts::{checked_credentials, classify, seconds};
use crate::roles::RoleArn;
use crate::roles::session_name::SessionName;

/// How long a refusal of STS is returned before STS is called again. It is as long as for a pod's role: no pod's role
/// can be assumed meanwhile.
const DENIED_RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The longest session that STS gives a role that another role assumes (IAM User Guide, role chaining).
const MAX_CHAINED_DURATION: Duration = Duration::from_secs(3600);

/// Provides the role's credentials to the SDK, which keeps them until shortly before they expire and asks once for
/// all calls that wait.
pub(super) struct IntermediateRole {
    client: Client,
    role: RoleArn,
    name: SessionName,
    denied: Mutex<Option<(Instant, ObtainError)>>,
}

impl fmt::Debug for IntermediateRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntermediateRole")
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

impl IntermediateRole {
    /// Makes a provider from a client that has the node's own credentials.
    pub(super) fn new(client: Client, role: RoleArn, name: SessionName) -> Self {
        let denied = Mutex::default();
        Self {
            client,
            role,
            name,
            denied,
        }
    }

    async fn assume(&self) -> Result<Credentials, ObtainError> {
        if let Some((until, error)) = &*self.denied.lock().unwrap_or_else(PoisonError::into_inner)
            && *until > Instant::now()
        {
            return Err(error.clone());
        }
        let obtained = SystemTime::now();
        let answer = self
            .client
            .assume_role()
            .role_arn(self.role.as_str())
            .role_session_name(self.name.as_str())
            .duration_seconds(seconds(MAX_CHAINED_DURATION))
            .send()
            .await
            .map_err(|error| match classify(&error) {
                ObtainError::Denied(message) => {
                    let denied = ObtainError::Denied(format!("--assume-role-arn {}: {message}", self.role));
                    let until = Instant::now() + DENIED_RETRY_INTERVAL;
                    *self.denied.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some((until, denied.clone()));
                    denied
                }
                other => other,
            })?;
        let (credentials, expiration) = checked_credentials(answer.credentials(), obtained)?;
        Ok(Credentials::new(
            credentials.access_key_id(),
            credentials.secret_access_key(),
            Some(credentials.session_token().to_owned()),
            Some(expiration),
            "assume-role-arn",
        ))
    }
}

impl ProvideCredentials for IntermediateRole {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.assume().await.map_err(CredentialsError::provider_error)
        })
    }
}
