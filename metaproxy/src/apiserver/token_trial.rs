//! Tokens of service accounts, tried: the API server runs its whole admission for a request that it carries out only in
//! appearance (`dryRun=All`), so a policy or a webhook that refuses tokens is found before a pod needs one, and so is a policy that
//! should refuse some and is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use kube::api::PostParams;

use super::{ApiServer, REQUEST_TIMEOUT, error_text};

/// The shortest life that the API server gives (`MinTokenAgeSec`), in seconds: tokens are used at once.
const TOKEN_LIFE_SECONDS: i64 = 600;

/// An audience that no policy of the chart allows.
const FOREIGN_AUDIENCE: &str = "metaproxy-doctor.invalid";

/// Why no token is asked for.
pub const NO_AUDIENCE_LIMIT: &str = "nothing limits their audience, as a trial shows, and --token-policy=required asks for that; a new \
                            admission policy acts after a second: are the chart's (webIdentity.admissionPolicy) and its binding \
                            there?";

/// The audience of STS.
const STS_AUDIENCE: &str = "sts.amazonaws.com";

/// The pod and the service account that a token is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSubject {
    /// Namespace of both.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod's name.
    pub pod: String,
    /// Its UID.
    pub uid: String,
}

impl TokenSubject {
    fn request(&self, audience: &str) -> TokenRequest {
        bound_token_request(audience, &self.pod, &self.uid)
    }
}

/// What the agent asks for: a token for one audience, bound to a pod, good for ten minutes.
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

/// What a trial has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenTrial {
    /// A token would be given.
    Given,
    /// None is given, and why.
    Refused(String),
    /// It can't be told: there is no pod to try it for, or the API server is away.
    Unknown,
}

/// Whether tokens are given as the agent asks for them: to one of these subjects at least.
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

/// Whether a token for another audience than STS's would be given: such a token is its service account in the cluster, or
/// elsewhere.
pub async fn try_foreign_audience(api: &ApiServer, subject: &TokenSubject) -> TokenTrial {
    dry_run(api, subject, FOREIGN_AUDIENCE).await
}

/// Whether a policy of the cluster limits the agent's tokens to STS's audience, by the last trial. An agent whose policy is
/// required asks for no token without it: helm makes the policy after the right that it limits, and the API server takes a second
/// to act by a new one. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AudienceLimit(Arc<AtomicBool>);

impl AudienceLimit {
    /// Whether it was seen to act.
    pub fn is_enforced(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Tries it for this subject. What can't be told leaves it as it was.
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
        // What can't be read was given.
        Ok(Err(kube::Error::SerdeError(_) | kube::Error::FromUtf8(_))) => TokenTrial::Given,
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 403 | 422) => {
            TokenTrial::Refused(format!(
                "service account {}/{}: {}",
                subject.namespace,
                subject.service_account,
                error_text(&kube::Error::Api(status))
            ))
        }
        // The pod has gone meanwhile, or the API server is away.
        Ok(Err(_)) | Err(_) => TokenTrial::Unknown,
    }
}
