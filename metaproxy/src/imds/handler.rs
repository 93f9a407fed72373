//! Handles one request of an identified client: what it comes to, as an [`Outcome`].
//!
//! [`Handler::try_answer`] answers what needs no waiting, which is nearly everything. It hands on what it has found out
//! about a request that must wait, and [`Handler::finish`] goes on from there. Nothing is logged, counted or reported here:
//! that is done where responses are sent, so a dry run leaves no trace.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request};
use tokio::sync::watch;
use tokio::time::Instant;

use super::decisions::{Decided, Decisions};
use super::headers::{FORWARDED, TOKEN, TOKEN_TTL};
use super::outcome::{InvalidRequest, Outcome, TokenProblem};
use super::passthrough::Passthrough;
use super::path::{NodePath, Paths, Route, encoded};
use super::recent::Recent;
use super::token::{MAX_TTL, Tokens};
use crate::credentials::{
    Issuer, ObtainError, RecentSession, Session, SessionError, SessionKey, Sessions, paced_reason,
};
use crate::identify::Client;
use crate::pods::{Known, Pods};
use crate::roles::{Grant, Reason, Rules};
use crate::telemetry::metrics::RequestKind;

/// How long a request may wait for its answer. Two SDKs try once and give up after a second; the rest of it is for the
/// way of the packets.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

/// Lifetime of the session token of a dry run, in seconds: longer than [`ANSWER_TIMEOUT`]. A token ends with a whole
/// second, so one of a second may be over at once.
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
    /// The rules that decide about roles. They change once, if the base ARN has to be found out.
    pub rules: watch::Receiver<Arc<Rules>>,
    /// The sessions.
    pub sessions: Sessions<I>,
    /// The session tokens.
    pub tokens: Tokens,
    /// The paths of the node's metadata that pods may see.
    pub paths: Paths,
    /// The way to the node's metadata service.
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
    /// What it comes to.
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

/// A request that must wait, with what is known of it already.
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
    /// Whether it needs a session token.
    TokenPolicy,
    /// What is decided about its pod.
    Decision,
    /// A session of the role that was decided.
    Session(Arc<Decided>),
    /// The node's metadata service.
    Node,
}

/// What a pod's own answer lacks.
enum Lacking<'a> {
    Decision(&'a Reason),
    Session {
        grant: &'a Grant,
        key: &'a SessionKey,
        extended: bool,
    },
}

impl<I: Issuer> Handler<I> {
    /// Makes a handler of everything that it needs.
    pub fn new(parts: Parts<I>) -> Self {
        let decisions = Decisions::new(parts.pods.clone(), parts.rules.clone());
        Self { parts, decisions }
    }

    /// Returns the way to the node's metadata service.
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

    /// Makes the memory of a client's new connection.
    pub fn recent<'a>(&self, client: &'a Client) -> Recent<'a> {
        let parts = &self.parts;
        Recent::new(
            client,
            parts.pods.clone(),
            parts.rules.clone(),
            parts.imds_v1.clone(),
        )
    }

    /// Returns whether a request without a session token is answered 401.
    pub fn requires_tokens(&self) -> bool {
        *self.parts.imds_v1.borrow() == ImdsV1Policy::Denied
    }

    /// Answers a request whose body, if it had one, was read. Waits at most until the deadline.
    pub async fn answer<B>(&self, client: &Client, request: &Request<B>, deadline: Instant) -> Answer {
        let answered = self.try_answer(&mut self.recent(client), request);
        match answered {
            Ok(answer) => answer,
            Err(pending) => self.finish(client, pending, deadline).await,
        }
    }

    /// Answers as a client's request for this path would be answered now, with a session token. The same code answers it,
    /// so it calls STS if the pod's own request would; such a call is logged and audited as every other. Nothing else
    /// remains of it: no log line, event, count or report.
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

    /// Answers a request without waiting. Most requests end here, and the future of one that waits is never made for them.
    ///
    /// # Errors
    /// What is known so far of a request that must wait, for [`Self::finish`].
    pub fn try_answer<B>(&self, recent: &mut Recent<'_>, request: &Request<B>) -> Result<Answer, Pending> {
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
            (&Method::PUT, Route::Token) => self.issue_token(recent.client(), headers),
            (_, Route::Token) => Outcome::Invalid(InvalidRequest::TokenMethod),
            (method @ (&Method::GET | &Method::HEAD), route) => {
                let imds_v1 = recent.imds_v1();
                return self.try_read(recent, method, route, headers, imds_v1);
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
        recent: &mut Recent<'_>,
        method: &Method,
        route: Route,
        headers: &HeaderMap,
        imds_v1: ImdsV1Policy,
    ) -> Result<Answer, Pending> {
        let kind = route.kind();
        let pending = |route, token_left, waits_for| Pending {
            method: method.clone(),
            route,
            token_left,
            waits_for,
        };
        let token_left = match self.check_token(recent.client(), headers, imds_v1) {
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
                let (decided, session) = recent.decided(&self.decisions);
                match self.own(&own, decided, session) {
                    Ok(outcome) => outcome,
                    Err(Lacking::Decision(_)) => return Err(pending(own, token_left, WaitsFor::Decision)),
                    Err(Lacking::Session { .. }) => {
                        let decided = Arc::clone(decided);
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

    fn issue_token(&self, client: &Client, headers: &HeaderMap) -> Outcome {
        let ttl = single(headers, &TOKEN_TTL)
            .and_then(Result::ok)
            .and_then(|ttl| ttl.to_str().ok())
            .filter(|ttl| ttl.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|ttl| ttl.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return Outcome::Invalid(InvalidRequest::TokenTtl);
        };
        match self.parts.tokens.issue(&client.uid, ttl, SystemTime::now()) {
            Ok(token) => Outcome::Token { token, ttl },
            Err(error) => Outcome::TokenUnavailable(error),
        }
    }

    /// Returns what remains of the lifetime of the request's token; `None` if it has none and needs none.
    fn check_token(
        &self,
        client: &Client,
        headers: &HeaderMap,
        imds_v1: ImdsV1Policy,
    ) -> Result<Option<Duration>, TokenProblem> {
        if let Some(token) = single(headers, &TOKEN) {
            let check = |token: &HeaderValue| {
                let tokens = &self.parts.tokens;
                tokens.check(&client.uid, token.as_bytes(), SystemTime::now())
            };
            let left = token.ok().and_then(check);
            return left.map(Some).ok_or(TokenProblem::Invalid);
        }
        match imds_v1 {
            ImdsV1Policy::Allowed => Ok(None),
            ImdsV1Policy::Denied => Err(TokenProblem::Missing),
            ImdsV1Policy::Unknown => Err(TokenProblem::PolicyUnknown),
        }
    }

    /// Waits until it is known that requests need no token.
    async fn wait_for_token_policy(&self, deadline: Instant) -> Result<(), TokenProblem> {
        let mut imds_v1 = self.parts.imds_v1.clone();
        let known = imds_v1.wait_for(|known| *known != ImdsV1Policy::Unknown);
        match Box::pin(tokio::time::timeout_at(deadline, known)).await {
            Ok(Ok(known)) if *known == ImdsV1Policy::Allowed => Ok(()),
            Ok(_) => Err(TokenProblem::Missing),
            Err(_) => Err(TokenProblem::PolicyUnknown),
        }
    }

    /// Answers what a pod asks about its own role, as it was decided.
    fn own<'a>(
        &self,
        route: &Route,
        decided: &'a Decided,
        recent: &mut RecentSession,
    ) -> Result<Outcome, Lacking<'a>> {
        let (name, granted) = match decided {
            Decided::Granted { grant, key, place } => (grant.role.name(), Ok((grant, key, place))),
            Decided::Refused { name, reason } => (name.as_str(), Err(reason)),
            Decided::NoRole(reason) => return Ok(Outcome::NoRole(reason.clone())),
            Decided::Wait(reason) => return Err(Lacking::Decision(reason)),
        };
        let (wanted, extended) = match route {
            Route::Role { name, extended } => (Some(name), *extended),
            _ => (None, false),
        };
        match (route, granted) {
            (Route::Iam, _) => Ok(Outcome::IamEntries),
            (Route::Roles, _) => Ok(Outcome::RoleName(name.to_owned())),
            _ if wanted.is_some_and(|wanted| wanted != name && !decided.is_called(wanted)) => {
                Ok(Outcome::OtherRole { own: name.to_owned() })
            }
            (Route::Info, Ok((grant, ..))) => Ok(Outcome::RoleInfo(grant.role.clone())),
            (_, Ok((grant, key, place))) => {
                match self.parts.sessions.ready(&grant.subject.uid, key, place, recent) {
                    Some(session) => Ok(Outcome::Credentials {
                        session: session.clone(),
                        extended,
                    }),
                    None => Err(Lacking::Session { grant, key, extended }),
                }
            }
            (_, Err(reason)) => Ok(Outcome::Refused(reason.clone())),
        }
    }

    /// Answers the same once there is a session, or by the deadline.
    async fn wait_for_own(
        &self,
        client: &Client,
        route: &Route,
        mut decided: Arc<Decided>,
        deadline: Instant,
    ) -> Outcome {
        loop {
            match self.own(route, &decided, &mut RecentSession::default()) {
                Ok(outcome) => return outcome,
                Err(Lacking::Decision(reason)) => return Outcome::Unavailable(reason.clone()),
                Err(Lacking::Session { grant, key, extended }) => {
                    let pod = &grant.subject.uid;
                    let obtained = Box::pin(self.parts.sessions.get(pod, key, deadline)).await;
                    // The pod may have another role by now, or none.
                    let now = self.decisions.of(client);
                    let is_forgotten = matches!(obtained, Err(SessionError::Forgotten));
                    if !is_forgotten && (Arc::ptr_eq(&now, &decided) || now.key() == Some(key)) {
                        return credentials(grant, obtained, extended);
                    }
                }
            }
            decided = self.decisions.once_known(client, deadline).await;
        }
    }

    /// Answers a request for the node's metadata.
    async fn node(&self, client: &Client, method: &Method, path: &NodePath, deadline: Instant) -> Outcome {
        let passthrough = &self.parts.passthrough;
        let answered = if path.is_listing() {
            let has_role = path.lists_roles()
                && match &*self.decisions.once_known(client, deadline).await {
                    Decided::Granted { .. } | Decided::Refused { .. } => true,
                    Decided::NoRole(_) => false,
                    Decided::Wait(reason) => return Outcome::Unavailable(reason.clone()),
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

/// Answers a request for credentials with what came of its session.
fn credentials(grant: &Grant, obtained: Result<Session, SessionError>, extended: bool) -> Outcome {
    let error = match obtained {
        Ok(session) => return Outcome::Credentials { session, extended },
        Err(error) => error,
    };
    match error {
        SessionError::Obtain(error @ (ObtainError::Denied(_) | ObtainError::NoToken(_))) => {
            Outcome::Refused(error.reason(&grant.role))
        }
        SessionError::Obtain(error @ ObtainError::Unavailable(_)) => {
            Outcome::Unavailable(error.reason(&grant.role))
        }
        SessionError::Paced | SessionError::Forgotten => Outcome::Unavailable(paced_reason(grant)),
    }
}

/// Returns the value of a header, or an error if there are several different ones. Some clients add the same header again
/// with each retry.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Result<&'a HeaderValue, Several>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let is_one = values.all(|value| value == first);
    Some(is_one.then_some(first).ok_or(Several))
}

struct Several;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::decisions::tests::{client, decisions, inventory};
    use crate::imds::recent::tests::{ByName, handler_with};
    use crate::imds::response;
    use http_body_util::BodyExt as _;
    use hyper::StatusCode;
    use rstest::rstest;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    const UID: &str = "aaaaaaaa-0000-0000-0000-000000000001";
    const LIST: &str = "ami-id\nhostname\niam/\ninstance-id\npublic-keys/\n";

    /// A metadata service of the node without session tokens, which answers everything with [`LIST`].
    async fn node() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = [0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                let status = if head[..length].starts_with(b"PUT") {
                    "404 Not Found"
                } else {
                    "200 OK"
                };
                let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nETag: \"1\"");
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{LIST}", LIST.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        url
    }

    #[rstest]
    #[case::with_a_role(Some("app"), StatusCode::OK, "ami-id\nhostname\niam/\ninstance-id")]
    #[case::whose_role_is_refused(Some("a b"), StatusCode::OK, "ami-id\nhostname\niam/\ninstance-id")]
    #[case::without_a_role(Some(""), StatusCode::OK, "ami-id\nhostname\ninstance-id")]
    #[case::that_is_not_known_yet(None, StatusCode::SERVICE_UNAVAILABLE, "not known")]
    #[tokio::test]
    async fn a_pod_is_shown_iam_if_it_is_answered_there(
        #[case] role: Option<&str>,
        #[case] status: StatusCode,
        #[case] want: &str,
    ) {
        let (pods, rules, _) = decisions("one");
        pods.send_replace(role.map(inventory).unwrap_or_default());
        let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
        let sessions = Sessions::new(ByName);
        let handler = handler_with(
            sessions,
            &node().await,
            pods.subscribe(),
            rules.subscribe(),
            imds_v1,
        );
        let answer = handler.dry_run(&client(UID), "/latest/meta-data/").await;
        let answer = response::of(answer.outcome, answer.token_left);
        assert_eq!(answer.status(), status);
        assert!(!answer.headers().contains_key("etag"), "that is another list's");
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        if status == StatusCode::OK {
            assert_eq!(body, want);
        } else {
            assert!(body.contains(want), "{body}");
        }
    }

    #[rstest]
    #[case(&[], None)]
    #[case(&["a"], Some(Some("a")))]
    #[case(&["a", "a", "a"], Some(Some("a")))]
    #[case(&["a", "b"], Some(None))]
    #[case(&["a", "a", ""], Some(None))]
    fn a_header_that_is_given_again_counts_once(#[case] values: &[&str], #[case] want: Option<Option<&str>>) {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(TOKEN, value.parse().unwrap());
        }
        let one = single(&headers, &TOKEN);
        let one = one.map(|one| one.ok().map(|value| value.to_str().unwrap()));
        assert_eq!(one, want);
    }
}
