//! Calls STS with the AWS SDK. The node's own credentials come from the SDK's chain: environment, profile, and the
//! node's metadata service. The agent's calls to that service are never intercepted, because it runs in the node's
//! network namespace.

mod identity;

use std::error::Error;
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::identity::IdentityCache;
use aws_config::imds;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sts::Client;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::types::{Credentials, Tag};
use thiserror::Error;

pub use self::identity::IdentityError;

use super::intermediate_role::IntermediateRole;
use super::network_env::{NetworkEnv, NetworkEnvError};
use super::session::IssuedCredentials;
use super::web_identity::Token;
use super::{ObtainError, Session, SessionKey};
use crate::roles::session_name::SessionName;
use crate::roles::{RoleArn, SessionTags, StsEndpoint};

/// The maximum time of a call, retries included. It may be longer than requests wait, because the session is still
/// useful when it comes later.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The maximum time of one attempt of a call.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(12);

/// The maximum life of a session. `DurationSeconds` is at most 12 hours, so if a session seems to live longer than
/// this, the node's clock is wrong.
const MAX_SESSION_LIFE: Duration = Duration::from_secs(24 * 3600);

/// The endpoint of STS, and the settings of calls.
#[derive(Clone, Debug)]
pub struct StsSettings {
    /// `--region`; the SDK's chain decides if it is not given.
    pub region: Option<String>,
    /// `--sts-endpoint`; the region's endpoint if it is not given.
    pub endpoint: Option<String>,
    /// `--imds-endpoint`: the metadata service that has the node's credentials.
    pub imds_endpoint: String,
    /// `DurationSeconds`, 900 to 43200.
    pub duration: Duration,
    /// `--assume-role-arn`: a role that the node assumes, and which assumes all others.
    pub intermediate_role: Option<RoleArn>,
    /// The session name of the agent's own sessions.
    pub own_session_name: SessionName,
}

/// Why STS cannot be called at all.
#[derive(Debug, Error)]
pub enum StsError {
    /// The environment's network settings cannot be used.
    #[error(transparent)]
    Network(#[from] NetworkEnvError),
    /// Nothing names the region.
    #[error(
        "no AWS region: give --region, set AWS_REGION, or let the node's metadata service at {imds} be reached, which \
         knows it"
    )]
    NoRegion {
        /// The metadata service that was asked.
        imds: String,
    },
    /// The metadata service's URL cannot be parsed.
    #[error("--imds-endpoint {url}: not a URL such as http://169.254.169.254: {error}")]
    ImdsEndpoint {
        /// The URL as given.
        url: String,
        /// Why it cannot be parsed.
        error: String,
    },
}

/// A client of STS. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sts {
    /// Signs with the node's own credentials.
    node: Client,
    /// Signs with those of the intermediate role if there is one, else with the node's own.
    client: Client,
    /// Does not sign. A web identity token is the only credential.
    anonymous: Client,
    /// Does not sign, and calls the global endpoint.
    anonymous_global: Client,
    duration: Duration,
    region: String,
    /// `--sts-endpoint`
    endpoint: Option<String>,
}

/// The region that stands for the global endpoint (`sts.amazonaws.com`) in the endpoint rules of SDKs.
const GLOBAL_REGION: &str = "aws-global";

/// The one partition that has the global endpoint.
const GLOBAL_PARTITION: &str = "aws";

impl Sts {
    /// Resolves the region and the endpoints. Credentials are not loaded before the first call.
    ///
    /// # Errors
    /// Returns an error if the settings cannot be used, or no region is found.
    pub async fn connect(settings: &StsSettings, network: &NetworkEnv) -> Result<Self, StsError> {
        let http = network.http_client()?;
        let provider = ProviderConfig::default().with_http_client(http.clone());
        let imds = imds::Client::builder()
            .configure(&provider)
            .endpoint(&settings.imds_endpoint)
            .map_err(|error| StsError::ImdsEndpoint {
                url: settings.imds_endpoint.clone(),
                error: error.to_string(),
            })?
            .build();
        let region = RegionProviderChain::first_try(settings.region.clone().map(Region::new))
            .or_else(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::builder().configure(&provider).build())
            .or_else(
                ImdsRegionProvider::builder()
                    .configure(&provider)
                    .imds_client(imds.clone())
                    .build(),
            )
            .region()
            .await
            .ok_or_else(|| StsError::NoRegion {
                imds: settings.imds_endpoint.clone(),
            })?;
        let credentials = DefaultCredentialsChain::builder()
            .configure(provider.with_region(Some(region.clone())))
            .region(region.clone())
            .imds_client(imds)
            .build()
            .await;
        let timeouts = TimeoutConfig::builder()
            .operation_timeout(CALL_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .build();
        let defaults = || {
            aws_config::defaults(BehaviorVersion::latest())
                .http_client(http.clone())
                .region(region.clone())
                .timeout_config(timeouts.clone())
        };
        // The SDK resolves regional, FIPS and dual-stack endpoints; a URL that is given overrides them.
        let config = |shared: &SdkConfig| {
            let mut config = aws_sdk_sts::config::Builder::from(shared);
            if let Some(endpoint) = &settings.endpoint {
                config.set_endpoint_url(Some(endpoint.clone()));
            }
            config
        };
        let anonymous = config(&defaults().no_credentials().load().await);
        let anonymous_global = anonymous.clone().region(Region::new(GLOBAL_REGION));
        let config = config(&defaults().credentials_provider(credentials).load().await);
        let node = Client::from_conf(config.clone().build());
        let client = match &settings.intermediate_role {
            None => node.clone(),
            Some(role) => {
                let intermediate =
                    IntermediateRole::new(node.clone(), role.clone(), settings.own_session_name.clone());
                let identities = IdentityCache::lazy().load_timeout(CALL_TIMEOUT).build();
                Client::from_conf(
                    config
                        .credentials_provider(intermediate)
                        .identity_cache(identities)
                        .build(),
                )
            }
        };
        Ok(Self {
            node,
            client,
            anonymous: Client::from_conf(anonymous.build()),
            anonymous_global: Client::from_conf(anonymous_global.build()),
            duration: settings.duration,
            region: region.to_string(),
            endpoint: settings.endpoint.clone(),
        })
    }

    /// Returns the region, as given or found.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// Returns the endpoint as reports show it: `--sts-endpoint`, or a text that says that it is the region's.
    pub fn endpoint(&self) -> &str {
        self.endpoint.as_deref().unwrap_or("of the region")
    }

    /// Calls `AssumeRole`, as the node or as the intermediate role.
    pub(super) async fn assume(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let obtained = SystemTime::now();
        let SessionTags {
            pairs,
            are_transitive,
        } = &key.shape.tags;
        let tags = pairs.iter().filter_map(|(name, value)| {
            // Key and value are set, so it always builds.
            Tag::builder().key(*name).value(value).build().ok()
        });
        let tags: Vec<Tag> = tags.collect();
        let transitive = are_transitive.then(|| pairs.iter().map(|(name, _)| (*name).to_owned()).collect());
        let answer = self
            .client
            .assume_role()
            .role_arn(key.role.as_str())
            .role_session_name(key.shape.name.as_str())
            .set_external_id(key.shape.external_id.clone())
            .set_tags((!tags.is_empty()).then_some(tags))
            .set_transitive_tag_keys(transitive)
            .duration_seconds(seconds(self.duration))
            .send()
            .await
            .map_err(|error| classify(&error))?;
        session(key, answer.credentials(), obtained)
    }

    /// Calls `AssumeRoleWithWebIdentity`, which takes no credentials but the token.
    pub(super) async fn assume_with_token(
        &self,
        key: &SessionKey,
        endpoint: StsEndpoint,
        token: &Token,
    ) -> Result<Session, ObtainError> {
        let obtained = SystemTime::now();
        let client = match endpoint {
            StsEndpoint::Global if key.role.partition() == GLOBAL_PARTITION => &self.anonymous_global,
            _ => &self.anonymous,
        };
        let answer = client
            .assume_role_with_web_identity()
            .role_arn(key.role.as_str())
            .role_session_name(key.shape.name.as_str())
            .web_identity_token(token.reveal())
            .duration_seconds(seconds(self.duration))
            .send()
            .await
            .map_err(|error| redacted(token, classify(&error)))?;
        session(key, answer.credentials(), obtained)
    }
}

/// Removes the token from an error: STS quotes values that it refuses.
fn redacted(token: &Token, error: ObtainError) -> ObtainError {
    let redact = |message: String| message.replace(token.reveal(), "(the token)");
    match error {
        ObtainError::Denied(message) => ObtainError::Denied(redact(message)),
        ObtainError::NoToken(message) => ObtainError::NoToken(redact(message)),
        ObtainError::Unavailable(message) => ObtainError::Unavailable(redact(message)),
    }
}

fn session(
    key: &SessionKey,
    credentials: Option<&Credentials>,
    obtained: SystemTime,
) -> Result<Session, ObtainError> {
    let (credentials, expiration) = checked_credentials(credentials, obtained)?;
    let issued = IssuedCredentials {
        access_key_id: credentials.access_key_id(),
        secret_access_key: credentials.secret_access_key(),
        token: credentials.session_token(),
        expiration,
    };
    Ok(Session::new(&key.role, &issued, obtained))
}

pub(super) fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(3600)
}

/// Returns the credentials of a response, and when they expire.
///
/// # Errors
/// Returns an error if there are none, if they have expired, or if they would live longer than any session.
pub(super) fn checked_credentials(
    credentials: Option<&Credentials>,
    obtained: SystemTime,
) -> Result<(&Credentials, SystemTime), ObtainError> {
    let credentials =
        credentials.ok_or_else(|| ObtainError::Unavailable("STS answered without credentials".to_owned()))?;
    let expiration = SystemTime::try_from(*credentials.expiration())
        .ok()
        .filter(|expiration| {
            expiration
                .duration_since(obtained)
                .is_ok_and(|left| !left.is_zero() && left <= MAX_SESSION_LIFE)
        })
        .ok_or_else(|| {
            ObtainError::Unavailable(
                "STS answered with an expiry that has passed or is too far away; is this node's clock right?"
                    .to_owned(),
            )
        })?;
    Ok((credentials, expiration))
}

/// Classifies an error by whether another call would get the same error again.
pub(super) fn classify<E>(error: &SdkError<E>) -> ObtainError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    if let Some(denied) = intermediate_role_denied(error) {
        return denied;
    }
    let service = error.as_service_error();
    let code = service.and_then(|error| error.code()).unwrap_or_default();
    let denied = matches!(
        code,
        "AccessDenied"
            | "AccessDeniedException"
            | "IDPRejectedClaim"
            | "InvalidIdentityToken"
            | "MalformedPolicyDocument"
            | "PackedPolicyTooLarge"
            | "RegionDisabledException"
            | "ValidationError"
    );
    if denied {
        let message = service.and_then(|error| error.message()).unwrap_or_default();
        return ObtainError::Denied(format!("{code}: {message}"));
    }
    ObtainError::Unavailable(describe(error))
}

/// Describes a failed call. The SDK's own text is not used. It contains the ID of the request, which makes each
/// failure look new, and does not say that a response is not from STS.
fn describe<E>(error: &SdkError<E>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
{
    let Some(answer) = error.raw_response() else {
        return with_causes(error);
    };
    let status = answer.status().as_u16();
    let service = error.as_service_error();
    if let Some(code) = service.and_then(|error| error.code()) {
        let message = service.and_then(|error| error.message()).unwrap_or_default();
        return format!("STS answered {code} (HTTP status {status}): {message}");
    }
    let content_type = answer.headers().get("content-type").unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if media_type.ends_with("xml") {
        return format!("STS answered what cannot be read, with HTTP status {status}");
    }
    let is_shown = |c: char| c.is_ascii_alphanumeric() || "/+-.".contains(c);
    let media_type: String = media_type.chars().filter(|c| is_shown(*c)).take(40).collect();
    let what = if media_type.is_empty() {
        "no content type".to_owned()
    } else {
        format!("content type {media_type}")
    };
    format!(
        "the answer is not from STS: HTTP status {status}, {what}; a proxy or firewall on the way may have sent it (look at \
         HTTPS_PROXY, NO_PROXY and --sts-endpoint)"
    )
}

/// Returns the refusal of the intermediate role, if that is why no call was made.
fn intermediate_role_denied(error: &(dyn Error + 'static)) -> Option<ObtainError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(denied @ ObtainError::Denied(_)) = error.downcast_ref::<ObtainError>() {
            return Some(denied.clone());
        }
        cause = error.source();
    }
    None
}

/// Returns an error with its causes as a text. The SDK's `DisplayErrorContext` is not used: it appends the `Debug`
/// form, which holds the response and may hold credentials.
fn with_causes(error: &dyn Error) -> String {
    let mut words = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push(error.to_string());
        cause = error.source();
    }
    words.dedup();
    words.join(": ")
}

#[cfg(test)]
mod tests;
