//! Requests metadata from the node's own metadata service, as the node. If the service supports session tokens
//! (IMDSv2), the requests carry one. No pod ever sees such a token.

mod node_token;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use thiserror::Error;
use tokio::sync::watch;

use self::node_token::{FAILURE_MEMORY, TokenState};
use super::headers::TOKEN;
use super::passthrough::MAX_CONCURRENT_REQUESTS;
use super::path::NodePath;
use crate::roles::{BaseArn, RoleId};

/// The maximum time of a request that the agent makes for itself.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// The maximum length of an answer that the agent itself reads, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// The maximum number of idle connections that are kept open. It is the number of concurrent requests, because a new
/// connection costs more packets than a request.
const MAX_IDLE_CONNECTIONS: usize = MAX_CONCURRENT_REQUESTS;

/// Why the node's metadata service gave no usable answer.
#[derive(Debug, Error)]
pub enum UpstreamError {
    /// The connection failed or broke.
    #[error("the node's metadata service cannot be reached: {0}")]
    Unreachable(#[from] hyper_util::client::legacy::Error),
    /// It answered with an unexpected status.
    #[error("the node's metadata service answered {status} to {asked}")]
    Status {
        /// The resource that was requested, or a description of the request.
        asked: &'static str,
        /// The status of the answer.
        status: StatusCode,
    },
    /// It did not answer in time.
    #[error("the node's metadata service does not answer in time")]
    Slow,
    /// It gave no session token.
    #[error("the node's metadata service gives no session token: {problem}")]
    NoToken {
        /// Why it gave no token.
        problem: String,
        /// Whether no service answered at all.
        is_absence: bool,
    },
    /// It sent an answer that cannot be used.
    #[error("the node's metadata service sent an answer that cannot be used: {0}")]
    Unusable(&'static str),
}

impl UpstreamError {
    /// Returns whether the error means that no service answers at the endpoint.
    pub fn is_absence(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Slow => true,
            Self::NoToken { is_absence, .. } => *is_absence,
            Self::Status { .. } | Self::Unusable(_) => false,
        }
    }
}

/// The value of `--imds-endpoint`: the URL of a metadata service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(Authority);

/// The error of a text that is not the URL of a metadata service.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("not a URL such as http://169.254.169.254, with no path (the metadata service has no TLS)")]
pub struct BadEndpoint;

impl std::str::FromStr for Endpoint {
    type Err = BadEndpoint;

    fn from_str(text: &str) -> Result<Self, BadEndpoint> {
        let uri: Uri = text.parse().map_err(|_| BadEndpoint)?;
        let is_bare = uri.path() == "/" && uri.query().is_none();
        match (uri.scheme_str(), uri.authority()) {
            (Some("http"), Some(authority)) if is_bare && !authority.host().is_empty() => {
                Ok(Self(authority.clone()))
            }
            _ => Err(BadEndpoint),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0)
    }
}

/// A client of the node's metadata service. Cheap to clone. `Debug` shows no token.
#[derive(Clone)]
pub struct Upstream {
    client: Client<HttpConnector, Empty<Bytes>>,
    endpoint: Endpoint,
    token: Arc<watch::Sender<TokenState>>,
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Makes a client. It sends no request yet.
    pub fn new(endpoint: Endpoint) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(REQUEST_TIMEOUT));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .build(connector);
        Self {
            client,
            endpoint,
            token: Arc::default(),
        }
    }

    /// Requests a path and returns the response of the node's metadata service. The request is a new one: of the
    /// pod's request, it contains only the method and the path.
    pub async fn get(&self, method: &Method, path: &NodePath) -> Result<Response<Incoming>, UpstreamError> {
        self.with_token(method, path.as_str()).await
    }

    /// Requests a resource below `meta-data` for the agent itself. Returns `None` if it does not exist.
    async fn own(&self, asked: &'static str) -> Result<Option<Bytes>, UpstreamError> {
        let path = format!("/latest/meta-data/{asked}");
        let response = tokio::time::timeout(REQUEST_TIMEOUT, self.with_token(&Method::GET, &path))
            .await
            .map_err(|_| UpstreamError::Slow)??;
        match response.status() {
            StatusCode::OK => Ok(Some(read(response).await?)),
            StatusCode::NOT_FOUND => Ok(None),
            status => Err(UpstreamError::Status { asked, status }),
        }
    }

    /// Returns `InstanceProfileArn` of `iam/info`; `None` if the node has no role.
    pub async fn instance_profile(&self) -> Result<Option<String>, UpstreamError> {
        let Some(body) = self.own("iam/info").await? else {
            return Ok(None);
        };
        let info: serde_json::Value =
            serde_json::from_slice(&body).map_err(|_| UpstreamError::Unusable("iam/info is no JSON"))?;
        let arn = info.get("InstanceProfileArn").and_then(serde_json::Value::as_str);
        arn.map(|arn| Some(arn.to_owned()))
            .ok_or(UpstreamError::Unusable("iam/info has no InstanceProfileArn"))
    }

    /// Returns the role of the instance profile; `None` if the node has none. The account is that of the profile,
    /// which can contain only a role of its own account. The name is the one that `iam/security-credentials/` lists.
    pub async fn instance_role(&self) -> Result<Option<RoleId>, UpstreamError> {
        let Some(profile) = self.instance_profile().await? else {
            return Ok(None);
        };
        let account = BaseArn::of_account(&profile);
        let account = account.ok_or(UpstreamError::Unusable("iam/info has an ARN of no account"))?;
        let Some(body) = self.own("iam/security-credentials/").await? else {
            return Ok(None);
        };
        let name = String::from_utf8_lossy(&body);
        let name = name.lines().next().unwrap_or_default().trim();
        let role = RoleId::new(account.account(), name);
        role.map(Some).ok_or(UpstreamError::Unusable(
            "iam/security-credentials/ lists no role's name",
        ))
    }

    /// Sends one request without a session token, and returns whether the service refuses it.
    pub async fn requires_tokens(&self) -> Result<bool, UpstreamError> {
        let asked = "a request without a token";
        let request = self.request(&Method::GET, "/latest/meta-data/instance-id", None)?;
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, self.client.request(request));
        match answer.await.map_err(|_| UpstreamError::Slow)??.status() {
            StatusCode::UNAUTHORIZED => Ok(true),
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(false),
            status => Err(UpstreamError::Status { asked, status }),
        }
    }

    async fn with_token(&self, method: &Method, path: &str) -> Result<Response<Incoming>, UpstreamError> {
        let token = self.token(None).await?;
        let request = self.request(method, path, token.value.as_ref())?;
        let response = self.client.request(request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            token.proven.store(true, Ordering::Relaxed);
            return Ok(response);
        }
        drop(response);
        if !token.proven.load(Ordering::Relaxed) && token.obtained.elapsed() < FAILURE_MEMORY {
            return Err(UpstreamError::NoToken {
                problem: "it refuses the one that it has just given".to_owned(),
                is_absence: false,
            });
        }
        let token = self.token(Some(token.number)).await?;
        let request = self.request(method, path, token.value.as_ref())?;
        let response = self.client.request(request).await?;
        match response.status() {
            status @ StatusCode::UNAUTHORIZED => Err(UpstreamError::Status {
                asked: "a request with a new token",
                status,
            }),
            _ => {
                token.proven.store(true, Ordering::Relaxed);
                Ok(response)
            }
        }
    }

    fn request(
        &self,
        method: &Method,
        path: &str,
        token: Option<&HeaderValue>,
    ) -> Result<Request<Empty<Bytes>>, UpstreamError> {
        let path: PathAndQuery = path
            .parse()
            .map_err(|_| UpstreamError::Unusable("a path that cannot be sent"))?;
        let uri = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.endpoint.0.clone())
            .path_and_query(path)
            .build()
            .map_err(|_| UpstreamError::Unusable("a path that cannot be sent"))?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("metaproxy/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(token) = token {
            headers.insert(TOKEN, token.clone());
        }
        Ok(request)
    }
}

async fn read(response: Response<Incoming>) -> Result<Bytes, UpstreamError> {
    let body = Limited::new(response.into_body(), MAX_BODY).collect();
    let body = tokio::time::timeout(REQUEST_TIMEOUT, body)
        .await
        .map_err(|_| UpstreamError::Slow)?;
    body.map(|body| body.to_bytes())
        .map_err(|_| UpstreamError::Unusable("it broke off, or is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("http://169.254.169.254", true)]
    #[case("http://169.254.169.254/", true)]
    #[case("http://[fd00:ec2::254]", true)]
    #[case("http://127.0.0.1:8080", true)]
    #[case("https://169.254.169.254", false)]
    #[case("169.254.169.254", false)]
    #[case("http://", false)]
    #[case("http://x/latest", false)]
    #[case("http://x/?y", false)]
    #[case("", false)]
    fn an_endpoint_is_the_url_of_a_host(#[case] text: &str, #[case] is_one: bool) {
        assert_eq!(text.parse::<Endpoint>().is_ok(), is_one);
    }
}
