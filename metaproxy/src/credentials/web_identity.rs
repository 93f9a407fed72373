//! Issues sessions with the node's own credentials, or with tokens of pods' service accounts.
//!
//! A token is requested when STS is about to be called, sent to STS once, and dropped. It is bound to the pod, so it
//! is void when the pod is gone (TokenRequest, authentication.k8s.io/v1).

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

/// The maximum time that the API server may take to issue a token.
const TOKEN_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// A service account's token. No `Debug`, no `Display`: it is secret.
pub(super) struct Token(String);

impl Token {
    /// Returns the token, for STS only.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

/// An issuer that calls STS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StsIssuer {
    sts: Sts,
    api: Option<ApiServer>,
    required: Option<AudienceLimit>,
}

impl StsIssuer {
    /// Makes an issuer. Without `api` there are no tokens; with `required` there are none until that limit is
    /// enforced.
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
            let unknown = "the API server does not say whether a policy limits their audience (--token-policy=required)";
            match limit.check(api, &token_subjects::of_identity(identity)).await {
                TokenTrial::Refused(_) => {}
                TokenTrial::Given => return Err(unavailable(NO_AUDIENCE_LIMIT.to_owned())),
                TokenTrial::Unknown => return Err(unavailable(unknown.to_owned())),
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
            // An answer that cannot be read may hold a token, so the error is not shown.
            Ok(Err(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_))) => {
                Err(unavailable("the API server's answer cannot be read".to_owned()))
            }
            // The request is not permitted, or an object does not exist. The API server works, and would give the
            // same answer again.
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
