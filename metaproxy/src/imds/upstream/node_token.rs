//! Fetches and renews the node's own session token. A separate task fetches it, so a request that waits for it may be
//! cancelled. A request does not wait while there is a valid token. The token is renewed before it expires, and when
//! the node's service refuses it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use tokio::sync::watch;
use tracing::debug;

use super::{REQUEST_TIMEOUT, Upstream, UpstreamError, read};
use crate::imds::headers::TOKEN_TTL;

/// The lifetime that is requested, in seconds: the longest that the protocol allows.
const TTL: u64 = crate::imds::token::MAX_TTL;

/// How long a service without session tokens is assumed to have none.
const NO_TOKENS_MEMORY: Duration = Duration::from_secs(300);

/// How long a failure to get a token is remembered. The service limits the rate of requests, so it is not called
/// again before.
pub(super) const FAILURE_MEMORY: Duration = Duration::from_secs(1);

/// The number of a token that the service has refused.
pub(super) type Refused = u64;

/// The state of the node's session token.
#[derive(Default)]
pub(super) struct TokenState {
    held: Option<NodeToken>,
    /// Whether a task is fetching one.
    fetching: bool,
    failure: Option<TokenFailure>,
}

#[derive(Clone)]
struct TokenFailure {
    until: Instant,
    problem: String,
    is_absence: bool,
}

/// The node's session token.
#[derive(Clone)]
pub(super) struct NodeToken {
    /// The number of the token, counted from 1. The value cannot identify a token, because a service may give the
    /// same one again.
    pub(super) number: u64,
    /// The text of the token; `None` if the service has no tokens.
    pub(super) value: Option<HeaderValue>,
    /// Whether the service has ever accepted it.
    pub(super) proven: Arc<AtomicBool>,
    pub(super) obtained: Instant,
    renew_at: Instant,
    expires: Instant,
}

impl Upstream {
    /// Returns a token that is newer than `refused`, if that is given. All requests that wait share one fetch.
    pub(super) async fn token(&self, refused: Option<Refused>) -> Result<NodeToken, UpstreamError> {
        let mut changes = self.token.subscribe();
        loop {
            let (mut good, mut failed, mut start) = (None, None, false);
            self.token.send_if_modified(|state| {
                let now = Instant::now();
                let is_good = |token: &&NodeToken| {
                    now < token.expires && refused.is_none_or(|number| token.number > number)
                };
                let held = state.held.as_ref().filter(is_good);
                let fresh = held.is_some_and(|token| now < token.renew_at);
                let failure = state.failure.as_ref().filter(|failure| now < failure.until);
                start = !fresh && !state.fetching && failure.is_none();
                state.fetching |= start;
                good = held.cloned();
                failed = failure.filter(|_| !state.fetching).cloned();
                false
            });
            if start {
                let upstream = self.clone();
                tokio::spawn(async move { upstream.fetch_token().await });
            }
            match (good, failed) {
                (Some(token), _) => return Ok(token),
                (
                    None,
                    Some(TokenFailure {
                        problem, is_absence, ..
                    }),
                ) => {
                    return Err(UpstreamError::NoToken { problem, is_absence });
                }
                (None, None) => {
                    // This cannot fail, because `self` owns the sender.
                    let _ = changes.wait_for(|state| !state.fetching).await;
                }
            }
        }
    }

    async fn fetch_token(&self) {
        let ended = Ended(&self.token);
        let fetched = tokio::time::timeout(REQUEST_TIMEOUT, self.new_token()).await;
        self.token
            .send_modify(|state| match fetched.unwrap_or(Err(UpstreamError::Slow)) {
                Ok(token) => {
                    let number = state.held.as_ref().map_or(0, |held| held.number) + 1;
                    state.held = Some(NodeToken { number, ..token });
                    state.failure = None;
                }
                Err(error) => {
                    state.failure = Some(TokenFailure {
                        until: Instant::now() + FAILURE_MEMORY,
                        problem: error.to_string(),
                        is_absence: error.is_absence(),
                    });
                }
            });
        drop(ended);
    }

    async fn new_token(&self) -> Result<NodeToken, UpstreamError> {
        let mut request = self.request(&Method::PUT, "/latest/api/token", None)?;
        request.headers_mut().insert(TOKEN_TTL, HeaderValue::from(TTL));
        let response = self.client.request(request).await?;
        let now = Instant::now();
        match response.status() {
            StatusCode::OK => {}
            // Services older than IMDSv2, and imitations of them, have no session tokens.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                debug!("the node's metadata service has no session tokens");
                return Ok(NodeToken {
                    number: 0,
                    value: None,
                    proven: Arc::default(),
                    obtained: now,
                    renew_at: now + NO_TOKENS_MEMORY,
                    expires: now + NO_TOKENS_MEMORY,
                });
            }
            status => {
                let asked = "a request for a token";
                return Err(UpstreamError::Status { asked, status });
            }
        }
        let told = response.headers().get(TOKEN_TTL);
        let ttl = told.and_then(|ttl| ttl.to_str().ok()?.parse().ok());
        let life = Duration::from_secs(ttl.filter(|ttl| (1..=TTL).contains(ttl)).unwrap_or(TTL));
        let body = read(response).await?;
        let mut value = HeaderValue::from_bytes(body.trim_ascii())
            .map_err(|_| UpstreamError::Unusable("a token that is none"))?;
        value.set_sensitive(true);
        Ok(NodeToken {
            number: 0,
            value: Some(value),
            proven: Arc::default(),
            obtained: now,
            renew_at: now + life / 2,
            expires: now + life.mul_f64(0.95),
        })
    }
}

/// A guard of a fetch. When dropped, it marks the fetch as ended, even if the fetch was cancelled.
struct Ended<'a>(&'a watch::Sender<TokenState>);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.fetching = false);
    }
}
