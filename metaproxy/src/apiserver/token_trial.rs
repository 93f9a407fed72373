//! Dry runs of token requests (`dryRun=All`). The API server runs its whole admission for them and makes no token. So a
//! policy or webhook that refuses tokens is found before a pod needs one, and so is the absence of a policy that should
//! refuse some.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::{ApiServer, REQUEST_TIMEOUT, error_text};

/// The life of a token, in seconds. It is used at once, so this is the shortest that the API server accepts
/// (`MinTokenAgeSec`).
const TOKEN_LIFE_SECONDS: i64 = 600;

/// An audience that the chart's policy does not allow.
const FOREIGN_AUDIENCE: &str = "metaproxy-doctor.invalid";

/// Why no token is asked for if `--token-policy=required` and no policy acts.
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

/// What a dry run has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenTrial {
    /// A token would be given.
    Given,
    /// No token would be given, for this reason.
    Refused(String),
    /// Nothing: there is no pod to try it for, or the API server is away.
    Unknown,
}

/// Tries the agent's own token request. One of these subjects that would be given a token is enough.
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

/// Tries to get a token for another audience than STS. With such a token its holder is the service account in the
/// cluster, or in whatever trusts that audience.
pub async fn try_foreign_audience(api: &ApiServer, subject: &TokenSubject) -> TokenTrial {
    dry_run(api, subject, FOREIGN_AUDIENCE).await
}

/// Whether a policy of the cluster limits the agent's tokens to the audience of STS, as the last dry run has shown. An
/// agent that requires the policy asks for no token without it: helm makes the policy after the permission that it
/// limits, and the API server enforces a new policy only after a second. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AudienceLimit(Arc<AtomicBool>);

impl AudienceLimit {
    /// Tells whether the last dry run was refused.
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
        // An answer that cannot be read is a success: kube returns `Api` for every error status.
        Ok(Err(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_))) => TokenTrial::Given,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 422) => {
            TokenTrial::Refused(format!(
                "service account {}/{}: {}",
                subject.namespace,
                subject.service_account,
                error_text(&kube::Error::Api(status))
            ))
        }
        // The pod is gone, or the API server is away.
        Ok(Err(_)) | Err(_) => TokenTrial::Unknown,
    }
}
