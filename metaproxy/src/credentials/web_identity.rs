//! Tokens of pods' service accounts, and whoever has the session that a key asks for.
//!
//! A token is asked for when a session is to be had, shown to STS once, and dropped. It is bound to the pod: it is void
//! when the pod is gone (TokenRequest, authentication.k8s.io/v1).

use std::time::Duration;

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::sts::Sts;
use super::token_subjects;
use super::{Issuer, ObtainError, Session, SessionKey};
use crate::apiserver::token_trial::{AudienceLimit, NO_AUDIENCE_LIMIT, TokenTrial, bound_token_request};
use crate::apiserver::{ApiServer, error_text};
use crate::roles::{Principal, WebIdentity};

/// For the API server to answer.
const TOKEN_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A service account's token. No `Debug`, no `Display`: it is secret.
pub(super) struct Token(String);

impl Token {
    /// For STS.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// Gives out sessions of the node's making and of service accounts'.
#[derive(Clone, Debug)]
pub struct StsIssuer {
    sts: Sts,
    api: Option<ApiServer>,
    required: Option<AudienceLimit>,
}

impl StsIssuer {
    /// Without an API server there are no tokens, nor without a limit of their audience if one is required.
    pub fn new(sts: Sts, api: Option<ApiServer>, required: Option<AudienceLimit>) -> Self {
        Self { sts, api, required }
    }

    async fn token(&self, identity: &WebIdentity) -> Result<Token, ObtainError> {
        let unavailable = |why: String| {
            ObtainError::Unavailable(format!(
                "no token for service account {}: {why}",
                identity.account()
            ))
        };
        let Some(api) = &self.api else {
            return Err(unavailable("there is no API server to ask".to_owned()));
        };
        if let Some(limit) = self.required.as_ref().filter(|limit| !limit.is_enforced()) {
            let untold = "the API server does not say whether a policy limits their audience (--token-policy=required)";
            match limit.check(api, &token_subjects::of_identity(identity)).await {
                TokenTrial::Refused(_) => {}
                TokenTrial::Given => return Err(unavailable(NO_AUDIENCE_LIMIT.to_owned())),
                TokenTrial::Unknown => return Err(unavailable(untold.to_owned())),
            }
        }
        let request = bound_token_request(&identity.audience, &identity.pod, identity.uid.as_str());
        let accounts: Api<ServiceAccount> = Api::namespaced(api.client(), &identity.namespace);
        let params = PostParams::default();
        let answer = accounts.create_token_request(&identity.service_account, &params, &request);
        match tokio::time::timeout(TOKEN_REQUEST_TIMEOUT, answer).await {
            Ok(Ok(answer)) => match answer.status.map(|status| status.token) {
                Some(token) if !token.is_empty() => Ok(Token(token)),
                _ => Err(unavailable("the API server answered without one".to_owned())),
            },
            // What can't be read may hold a token.
            Ok(Err(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_))) => {
                Err(unavailable("the API server's answer cannot be read".to_owned()))
            }
            // Not permitted, or no such object: not the API server's trouble.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 404 | 422) => {
                let why = error_text(&kube::Error::Api(status));
                let account = identity.account();
                Err(ObtainError::NoToken(format!(
                    "token for service account {account}: {why}"
                )))
            }
            Ok(Err(error)) => Err(unavailable(error_text(&error))),
            Err(_) => Err(unavailable(format!(
                "the API server did not answer within {} s",
                TOKEN_REQUEST_TIMEOUT.as_secs()
            ))),
        }
    }
}

impl Issuer for StsIssuer {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        match &key.shape.principal {
            Principal::Node => self.sts.assume(key).await,
            Principal::ServiceAccount(identity) => {
                let token = self.token(identity).await?;
                self.sts.assume_with_token(key, identity.endpoint, &token).await
            }
        }
    }
}
