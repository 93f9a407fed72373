//! Dry runs of token requests (`dryRun=All`). For a dry run the API server runs its whole admission, but makes no
//! token. A dry run shows whether a policy or webhook refuses tokens before a pod needs one. It also shows whether a
//! policy is missing that should refuse some tokens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::{ApiServer, REQUEST_TIMEOUT, error_text};

/// The life of a token, in seconds. A token is used at once, so this is the shortest life that the API server accepts
/// (`MinTokenAgeSec`).
const TOKEN_LIFE_SECONDS: i64 = 600;

/// An audience that the chart's policy does not allow.
const FOREIGN_AUDIENCE: &str = "metaproxy-doctor.invalid";

/// The reason why no token is requested with `--token-policy=required` while no policy limits the audience.
pub const NO_AUDIENCE_LIMIT: &str = "nothing limits their audience, as a trial shows, and --token-policy=required asks for that; a new \
                            admission policy acts after a second: are the chart's (webIdentity.admissionPolicy) and its binding \
                            there?";

/// The audience that STS expects.
const STS_AUDIENCE: &str = "sts.amazonaws.com";

/// The pod and the service account that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubject {
    /// The namespace of both.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
}

impl TokenSubject {
    fn request(&self, audience: &str) -> TokenRequest {
        bound_token_request(audience, &self.pod, &self.uid)
    }
}

/// Makes the agent's token request: for one audience, bound to a pod, for ten minutes.
pub fn bound_token_request(audience: &str, pod: &str, uid: &str) -> TokenRequest {
    TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![audience.to_owned()],
            expiration_seconds: Some(TOKEN_LIFE_SECONDS),
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.to_owned()),
                uid: Some(uid.to_owned()),
            }),
        },
        ..TokenRequest::default()
    }
}

/// The result of a dry run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenTrial {
    /// A token would be given.
    Given,
    /// No token would be given, for this reason.
    Refused(String),
    /// Unknown, because there is no pod for which a token can be tried, or the API server cannot be reached.
    Unknown,
}

/// Tries the agent's own token request for these subjects. The result is `Given` if one of them would get a token.
pub async fn try_tokens(api: &ApiServer, subjects: &[TokenSubject]) -> TokenTrial {
    let mut outcome = TokenTrial::Unknown;
    for subject in subjects {
        match dry_run(api, subject, STS_AUDIENCE).await {
            TokenTrial::Given => return TokenTrial::Given,
            TokenTrial::Refused(why) => outcome = TokenTrial::Refused(why),
            TokenTrial::Unknown => {}
        }
    }
    outcome
}

/// Tries to get a token for another audience than STS. With such a token, its holder can act as the service account
/// in the cluster, or in any other system that trusts the audience.
pub async fn try_foreign_audience(api: &ApiServer, subject: &TokenSubject) -> TokenTrial {
    dry_run(api, subject, FOREIGN_AUDIENCE).await
}

/// Whether a policy of the cluster limits the agent's tokens to the audience of STS, as the last dry run has shown.
/// An agent that requires the policy requests no token without it, because helm creates the policy after the
/// permission that it limits, and the API server enforces a new policy only after a second. A clone is cheap and
/// shares the value.
#[derive(Clone, Debug, Default)]
pub struct AudienceLimit(Arc<AtomicBool>);

impl AudienceLimit {
    /// Returns whether the last dry run was refused.
    pub fn is_enforced(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Tries a token for another audience. A result of `Unknown` changes nothing.
    pub async fn check(&self, api: &ApiServer, subject: &TokenSubject) -> TokenTrial {
        let trial = try_foreign_audience(api, subject).await;
        match trial {
            TokenTrial::Given => self.0.store(false, Ordering::Relaxed),
            TokenTrial::Refused(_) => self.0.store(true, Ordering::Relaxed),
            TokenTrial::Unknown => {}
        }
        trial
    }
}

async fn dry_run(api: &ApiServer, subject: &TokenSubject, audience: &str) -> TokenTrial {
    let accounts: Api<ServiceAccount> = Api::namespaced(api.client(), &subject.namespace);
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let request = subject.request(audience);
    let answer = accounts.create_token_request(&subject.service_account, &params, &request);
    match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
        Ok(Ok(_)) => TokenTrial::Given,
        // An answer that cannot be parsed is a success, because kube returns `Api` for every error status.
        Ok(Err(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_))) => TokenTrial::Given,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 422) => {
            TokenTrial::Refused(format!(
                "service account {}/{}: {}",
                subject.namespace,
                subject.service_account,
                error_text(&kube::Error::Api(status))
            ))
        }
        // The pod does not exist any more, or the API server cannot be reached.
        Ok(Err(_)) | Err(_) => TokenTrial::Unknown,
    }
}
