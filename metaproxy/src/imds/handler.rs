//! Handles one request of an identified client and returns its [`Outcome`].
//!
//! [`Handler::try_answer`] answers requests that need not wait, which are nearly all. For a request that must wait,
//! it returns its intermediate result, and [`Handler::finish`] continues from there. Nothing is logged, counted or
//! reported here. The code that sends responses does that, so a dry run leaves no trace.

mod own_role;
mod session_tokens;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderValue};
use hyper::{Method, Request};
use tokio::sync::watch;
use tokio::time::Instant;

use self::own_role::Lacking;
use super::decisions::{Decisions, PodDecision};
use super::headers::{FORWARDED, TOKEN};
use super::outcome::{InvalidRequest, Outcome, TokenProblem};
use super::passthrough::Passthrough;
use super::path::{NodePath, Paths, Route, encoded};
use super::token::Tokens;
use crate::credentials::{Issuer, Sessions};
use crate::identify::Client;
use crate::pods::{Known, Pods};
use crate::roles::{Decision, Rules};
use crate::telemetry::metrics::RequestKind;

/// How long a request may wait for its answer. Two SDKs try once and give up after a second. The other 200 ms are for
/// the network.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

/// The lifetime of the session token of a dry run, in seconds. It is longer than [`ANSWER_TIMEOUT`]. A token expires
/// at a whole second, so a lifetime of one second may be over at once.
const DRY_RUN_TOKEN_TTL: u64 = 60;

/// Whether requests without a session token (IMDSv1) are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImdsV1Policy {
    /// They are answered.
    Allowed,
    /// They are answered 401.
    Denied,
    /// It is not known yet what the node's own metadata service does.
    Unknown,
}

/// Everything that an answer may depend on.
#[derive(Debug)]
pub struct Parts<I> {
    /// The pods that are known.
    pub pods: Pods,
    /// The rules that decide about roles. They change once, if the base ARN has to be looked up.
    pub rules: watch::Receiver<Arc<Rules>>,
    /// The sessions.
    pub sessions: Sessions<I>,
    /// The session tokens.
    pub tokens: Tokens,
    /// The paths of the node's metadata that pods may see.
    pub paths: Paths,
    /// The access to the node's metadata service.
    pub passthrough: Passthrough,
    /// Whether tokens are required.
    pub imds_v1: watch::Receiver<ImdsV1Policy>,
}

/// Handles requests.
#[derive(Debug)]
pub struct Handler<I> {
    parts: Parts<I>,
    decisions: Decisions,
}

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    /// What the request asked for, as metrics count it.
    pub kind: RequestKind,
    /// The outcome of the request.
    pub outcome: Outcome,
    /// What remains of the lifetime of the session token that came with the request, if a valid one did.
    pub token_left: Option<Duration>,
}

impl Answer {
    /// Makes the answer to a request that was not read as far as its path.
    pub fn invalid(problem: InvalidRequest) -> Self {
        Self {
            kind: RequestKind::Other,
            outcome: Outcome::Invalid(problem),
            token_left: None,
        }
    }
}

/// A request that must wait, and its intermediate result.
#[derive(Debug)]
pub struct Pending {
    method: Method,
    route: Route,
    token_left: Option<Duration>,
    waits_for: WaitsFor,
}

/// What a request waits for.
#[derive(Debug)]
enum WaitsFor {
    /// The policy that says whether it needs a session token.
    TokenPolicy,
    /// The decision about its pod.
    Decision,
    /// A session of the role that this decision grants.
    Session(Arc<PodDecision>),
    /// The node's metadata service.
    Node,
}

impl<I: Issuer> Handler<I> {
    /// Makes a handler from its parts.
    pub fn new(parts: Parts<I>) -> Self {
        let decisions = Decisions::new(parts.pods.clone(), parts.rules.clone());
        Self { parts, decisions }
    }

    /// Returns the access to the node's metadata service.
    pub fn passthrough(&self) -> &Passthrough {
        &self.parts.passthrough
    }

    /// Returns the name of a client's pod for the log: `namespace/name` if the pod is known.
    pub fn pod_name(&self, client: &Client) -> String {
        match self.parts.pods.borrow().by_uid(&client.uid) {
            Some(Known::Pod(pod)) => pod.to_string(),
            Some(Known::Ambiguous(_)) => "(several)".to_owned(),
            None => "(not known yet)".to_owned(),
        }
    }

    /// Returns whether a request without a session token is answered 401.
    pub fn requires_tokens(&self) -> bool {
        *self.parts.imds_v1.borrow() == ImdsV1Policy::Denied
    }

    /// Answers a request whose body, if it had one, was already read. Waits at most until the deadline.
    pub async fn answer<B>(&self, client: &Client, request: &Request<B>, deadline: Instant) -> Answer {
        let answered = self.try_answer(client, request);
        match answered {
            Ok(answer) => answer,
            Err(pending) => self.finish(client, pending, deadline).await,
        }
    }

    /// Answers a request for this path as if the client made it now, with a session token. The same code answers it,
    /// so it calls STS if the pod's own request would. Such a call is logged and audited like any other. There is no
    /// other trace of a dry run: no log line, event, count or report.
    pub async fn dry_run(&self, client: &Client, path: &str) -> Answer {
        let request = Request::get(encoded(path)).body(());
        let Ok(mut request) = request else {
            return Answer::invalid(InvalidRequest::Target);
        };
        let token = self
            .parts
            .tokens
            .issue(&client.uid, DRY_RUN_TOKEN_TTL, SystemTime::now());
        if let Ok(Ok(token)) = token.map(HeaderValue::try_from) {
            request.headers_mut().insert(TOKEN, token);
        }
        self.answer(client, &request, Instant::now() + ANSWER_TIMEOUT)
            .await
    }

    /// Answers a request without waiting. Most requests end here, so the future for a request that waits is never
    /// made for them.
    ///
    /// # Errors
    /// Returns the intermediate result of a request that must wait, for [`Self::finish`].
    pub fn try_answer<B>(&self, client: &Client, request: &Request<B>) -> Result<Answer, Pending> {
        let headers = request.headers();
        if headers.contains_key(FORWARDED) {
            return Ok(Answer::invalid(InvalidRequest::Forwarded));
        }
        let target = request.uri();
        let Some(path) = target.path_and_query().filter(|_| target.scheme().is_none()) else {
            return Ok(Answer::invalid(InvalidRequest::Target));
        };
        let route = self.parts.paths.classify(path.as_str());
        let kind = route.kind();
        let outcome = match (request.method(), route) {
            (&Method::PUT, Route::Token) => self.issue_token(client, headers),
            (_, Route::Token) => Outcome::Invalid(InvalidRequest::TokenMethod),
            (method @ (&Method::GET | &Method::HEAD), route) => {
                return self.try_read(client, method, route, headers);
            }
            _ => Outcome::Invalid(InvalidRequest::Method),
        };
        Ok(Answer {
            kind,
            outcome,
            token_left: None,
        })
    }

    fn try_read(
        &self,
        client: &Client,
        method: &Method,
        route: Route,
        headers: &HeaderMap,
    ) -> Result<Answer, Pending> {
        let kind = route.kind();
        let pending = |route, token_left, waits_for| Pending {
            method: method.clone(),
            route,
            token_left,
            waits_for,
        };
        let token_left = match self.check_token(client, headers) {
            Ok(token_left) => token_left,
            Err(TokenProblem::PolicyUnknown) => return Err(pending(route, None, WaitsFor::TokenPolicy)),
            Err(problem) => {
                return Ok(Answer {
                    kind,
                    outcome: Outcome::Unauthorized(problem),
                    token_left: None,
                });
            }
        };
        let outcome = match route {
            Route::Node(_) => return Err(pending(route, token_left, WaitsFor::Node)),
            Route::Refused(refusal) => Outcome::PathRefused(refusal),
            own => {
                let decided = self.decisions.of(client);
                match self.own(&own, &decided) {
                    Ok(outcome) => outcome,
                    Err(Lacking::Decision(_)) => return Err(pending(own, token_left, WaitsFor::Decision)),
                    Err(Lacking::Session { .. }) => {
                        return Err(pending(own, token_left, WaitsFor::Session(decided)));
                    }
                }
            }
        };
        Ok(Answer {
            kind,
            outcome,
            token_left,
        })
    }

    /// Answers a request that must wait, by the deadline at the latest.
    pub async fn finish(&self, client: &Client, pending: Pending, deadline: Instant) -> Answer {
        let Pending {
            method,
            route,
            token_left,
            waits_for,
        } = pending;
        let kind = route.kind();
        let unauthorized = match waits_for {
            WaitsFor::TokenPolicy => self.wait_for_token_policy(deadline).await.err(),
            _ => None,
        };
        let outcome = match (unauthorized, route, waits_for) {
            (Some(problem), ..) => Outcome::Unauthorized(problem),
            (_, Route::Node(path), _) => Box::pin(self.node(client, &method, &path, deadline)).await,
            (_, Route::Refused(refusal), _) => Outcome::PathRefused(refusal),
            (_, own, WaitsFor::Session(decided)) => self.wait_for_own(client, &own, decided, deadline).await,
            (_, own, _) => {
                let decided = self.decisions.once_known(client, deadline).await;
                self.wait_for_own(client, &own, decided, deadline).await
            }
        };
        Answer {
            kind,
            outcome,
            token_left,
        }
    }

    /// Answers a request for the node's metadata.
    async fn node(&self, client: &Client, method: &Method, path: &NodePath, deadline: Instant) -> Outcome {
        let passthrough = &self.parts.passthrough;
        let answered = if path.is_listing() {
            let has_role = path.lists_roles()
                && match &*self.decisions.once_known(client, deadline).await {
                    Decision::Granted(_) | Decision::Refused { .. } => true,
                    Decision::NoRole(_) => false,
                    Decision::Wait(reason) => return Outcome::Unavailable(reason.clone()),
                };
            let visible = |entries: &str| self.parts.paths.visible(path, entries, has_role);
            passthrough.list(&client.uid, path, deadline, visible).await
        } else {
            passthrough.pass(&client.uid, method, path, deadline).await
        };
        match answered {
            Ok(answer) => Outcome::Node(Box::new(answer)),
            Err(error) => Outcome::NodeUnavailable(error),
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
