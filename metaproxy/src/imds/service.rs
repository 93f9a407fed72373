//! One request of one pod, answered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::answer::{self, Answer, TOKEN, TOKEN_TTL};
use super::decisions::{Decided, Decisions};
use super::passthrough::Passthrough;
use super::path::{NodePath, Paths, Route};
use super::recent::Recent;
use super::token::{MAX_TTL, Tokens};
use crate::credentials::{
    Issuer, ObtainError, RecentSession, Session, SessionError, SessionKey, Sessions, paced_reason,
};
use crate::pods::{Known, PodUid, Pods};
use crate::roles::{Grant, Reason, Rules};
use crate::telemetry::metrics::RequestKind;
use crate::telemetry::refusal_reporter::RefusalReporter;

/// Every answer is on its way within this time: two SDKs try once and give up after a second. What is left of it is for getting there.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(800);

const FORWARDED: &str = "x-forwarded-for";

/// Who asks: identified once per connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// The pod.
    pub uid: PodUid,
}

/// Whether requests without a session token (IMDSv1) are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImdsV1Policy {
    /// They are.
    Allowed,
    /// They are not: 401.
    Denied,
    /// What the node's own metadata service does is being found out.
    Unknown,
}

/// Everything that an answer may depend on.
#[derive(Debug)]
pub struct Parts<I> {
    /// What is known of the pods.
    pub pods: Pods,
    /// What decides about roles. It changes once, where the base ARN has to be found out.
    pub rules: watch::Receiver<Arc<Rules>>,
    /// The sessions.
    pub sessions: Sessions<I>,
    /// The session tokens.
    pub tokens: Tokens,
    /// What pods may see of the node's metadata.
    pub paths: Paths,
    /// The way to the node's metadata service.
    pub passthrough: Passthrough,
    /// Whether tokens are required.
    pub imds_v1: watch::Receiver<ImdsV1Policy>,
    /// What was said about pods.
    pub reporter: Arc<RefusalReporter>,
}

/// What answers requests.
#[derive(Debug)]
pub struct Service<I> {
    parts: Parts<I>,
    decisions: Decisions,
}

/// Why a request is not answered to the pod that shows it.
enum Unentitled {
    /// The token is not one of this pod's, or has expired, or there are several.
    BadToken,
    /// There is none.
    NoToken,
    /// There is none, and whether there must be is not known yet.
    NotYet,
}

impl Unentitled {
    fn answer(&self) -> Answer {
        let sentence = match self {
            Self::BadToken => "The token has expired, or was not issued to this pod; ask for another.",
            Self::NoToken => "Requests need a session token here (IMDSv2): PUT /latest/api/token gives one.",
            Self::NotYet => {
                "Whether requests need a session token is being found out; PUT /latest/api/token gives one."
            }
        };
        answer::failure(StatusCode::UNAUTHORIZED, sentence)
    }
}

/// A request that has to wait: for what is asked.
#[derive(Debug)]
pub struct Pending(Route);

/// What an answer still takes.
enum Lacking<'a> {
    Decision(&'a Reason),
    Session {
        grant: &'a Grant,
        key: &'a SessionKey,
        extended: bool,
    },
}

impl<I: Issuer> Service<I> {
    /// Puts together what is needed for an answer.
    pub fn new(parts: Parts<I>) -> Self {
        let decisions = Decisions::new(parts.pods.clone(), parts.rules.clone());
        Self { parts, decisions }
    }

    /// Answers one request; its body, if any, was read and dropped.
    pub async fn answer(
        &self,
        client: &Client,
        method: &Method,
        target: &Uri,
        headers: &HeaderMap,
    ) -> (RequestKind, Answer) {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let route = match self.begin(&mut self.recent(client), method, target, headers) {
            Ok(answered) => return answered,
            Err(Pending(route)) => route,
        };
        let kind = route.kind();
        let imds_v1 = *self.parts.imds_v1.borrow();
        let left = match self.entitled(client, headers, imds_v1) {
            Err(Unentitled::NotYet) => self.entitled_later(deadline).await,
            known => known,
        };
        let answer = match left {
            Ok(left) => {
                let response = self.read(client, method, route, deadline).await;
                answer::with_token_left(response, left)
            }
            Err(unentitled) => unentitled.answer(),
        };
        (kind, answer)
    }

    /// The way to the node's metadata service.
    pub fn passthrough(&self) -> &Passthrough {
        &self.parts.passthrough
    }

    /// The pod of a client, as `namespace/name`.
    pub fn pod_name(&self, client: &Client) -> String {
        match self.parts.pods.borrow().by_uid(&client.uid) {
            Some(Known::Pod(pod)) => pod.to_string(),
            Some(Known::Ambiguous(_)) => "(several)".to_owned(),
            None => "(not known yet)".to_owned(),
        }
    }

    /// What a client's connection keeps of its requests.
    pub fn recent<'a>(&self, client: &'a Client) -> Recent<'a> {
        let parts = &self.parts;
        Recent::new(
            client,
            parts.pods.clone(),
            parts.rules.clone(),
            parts.imds_v1.clone(),
        )
    }

    /// The answer to a request without a body, where there is nothing to wait for. Most requests end here, and what it
    /// takes to wait is never made for them.
    ///
    /// # Errors
    /// What there is to wait for.
    pub fn begin(
        &self,
        recent: &mut Recent<'_>,
        method: &Method,
        target: &Uri,
        headers: &HeaderMap,
    ) -> Result<(RequestKind, Answer), Pending> {
        let other = |answer| Ok((RequestKind::Other, answer));
        if headers.contains_key(FORWARDED) {
            return other(answer::failure(
                StatusCode::FORBIDDEN,
                "A request with X-Forwarded-For came through a proxy, and is not answered.",
            ));
        }
        let Some(path) = target.path_and_query().filter(|_| target.scheme().is_none()) else {
            return other(answer::failure(
                StatusCode::BAD_REQUEST,
                "A request for metadata names a path, and no host before it.",
            ));
        };
        let route = self.parts.paths.classify(path.as_str());
        let kind = route.kind();
        let answer = match (method, route) {
            (&Method::PUT, Route::Token) => self.issue_token(recent.client(), headers),
            (_, Route::Token) => answer::not_that_method("PUT", "A token is asked for with PUT."),
            (&Method::GET | &Method::HEAD, route) => {
                let imds_v1 = recent.imds_v1();
                match self.entitled(recent.client(), headers, imds_v1) {
                    Ok(left) => match self.at_once(recent, &route) {
                        Some(response) => answer::with_token_left(response, left),
                        None => return Err(Pending(route)),
                    },
                    Err(Unentitled::NotYet) => return Err(Pending(route)),
                    Err(unentitled) => unentitled.answer(),
                }
            }
            _ => answer::not_that_method("GET, HEAD", "Metadata is read with GET."),
        };
        Ok((kind, answer))
    }

    /// What a request for a path would be answered, by whoever asks in the pod's place: without a session token.
    pub async fn rehearse(&self, client: &Client, path: &str) -> Answer {
        let route = self.parts.paths.classify(path);
        self.read(client, &Method::GET, route, Instant::now() + ANSWER_TIMEOUT)
            .await
    }

    /// Whether a request without a session token is answered 401.
    pub fn requires_tokens(&self) -> bool {
        *self.parts.imds_v1.borrow() == ImdsV1Policy::Denied
    }

    fn issue_token(&self, client: &Client, headers: &HeaderMap) -> Answer {
        let ttl = the_one(headers, &TOKEN_TTL)
            .and_then(Result::ok)
            .and_then(|ttl| ttl.to_str().ok())
            .filter(|ttl| ttl.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|ttl| ttl.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return answer::failure(
                StatusCode::BAD_REQUEST,
                "X-aws-ec2-metadata-token-ttl-seconds must be a number from 1 to 21600.",
            );
        };
        match self.parts.tokens.issue(&client.uid, ttl, SystemTime::now()) {
            Ok(token) => answer::token(token, ttl),
            Err(error) => {
                warn!("cannot issue a token: {error}");
                answer::failure(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "No token can be issued at the moment.",
                )
            }
        }
    }

    /// What is left of the request's token; `None` where it has none and needs none.
    fn entitled(
        &self,
        client: &Client,
        headers: &HeaderMap,
        imds_v1: ImdsV1Policy,
    ) -> Result<Option<Duration>, Unentitled> {
        if let Some(token) = the_one(headers, &TOKEN) {
            let check = |token: &HeaderValue| {
                let tokens = &self.parts.tokens;
                tokens.check(&client.uid, token.as_bytes(), SystemTime::now())
            };
            let left = token.ok().and_then(check);
            return left.map(Some).ok_or(Unentitled::BadToken);
        }
        match imds_v1 {
            ImdsV1Policy::Allowed => Ok(None),
            ImdsV1Policy::Denied => Err(Unentitled::NoToken),
            ImdsV1Policy::Unknown => Err(Unentitled::NotYet),
        }
    }

    /// The same of a request without a token, once it is known whether it needs one.
    async fn entitled_later(&self, deadline: Instant) -> Result<Option<Duration>, Unentitled> {
        let mut imds_v1 = self.parts.imds_v1.clone();
        let known = imds_v1.wait_for(|known| *known != ImdsV1Policy::Unknown);
        match Box::pin(tokio::time::timeout_at(deadline, known)).await {
            Ok(Ok(known)) if *known == ImdsV1Policy::Allowed => Ok(None),
            Ok(_) => Err(Unentitled::NoToken),
            Err(_) => Err(Unentitled::NotYet),
        }
    }

    /// What is read, where there is nothing to wait for.
    fn at_once(&self, recent: &mut Recent<'_>, route: &Route) -> Option<Answer> {
        match route {
            Route::Node(_) => None,
            Route::Refused(refusal) => Some(answer::failure(StatusCode::NOT_FOUND, &refusal.to_string())),
            route => {
                let client = recent.client();
                let (decided, session) = recent.decided(&self.decisions);
                self.by_decision(client, route, decided, session).ok()
            }
        }
    }

    /// What is read of a pod's own role, as it was decided.
    ///
    /// # Errors
    /// What there is to wait for.
    fn by_decision<'a>(
        &self,
        client: &Client,
        route: &Route,
        decided: &'a Decided,
        recent: &mut RecentSession,
    ) -> Result<Answer, Lacking<'a>> {
        let (name, granted) = match decided {
            Decided::Granted { grant, key, place } => (grant.role.name(), Ok((grant, key, place))),
            Decided::Refused { name, reason } => (name.as_str(), Err(reason)),
            Decided::NoRole(reason) => {
                let sentence = self.parts.reporter.report(&client.uid, reason);
                return Ok(answer::failure(StatusCode::NOT_FOUND, &sentence));
            }
            Decided::Wait(reason) => return Err(Lacking::Decision(reason)),
        };
        let (wanted, extended) = match route {
            Route::Role { name, extended } => (Some(name), *extended),
            _ => (None, false),
        };
        match (route, granted) {
            (Route::Iam, _) => Ok(answer::iam_list()),
            (Route::Roles, _) => Ok(answer::role_list(name)),
            _ if wanted.is_some_and(|wanted| wanted != name && !decided.is_called(wanted)) => Ok(
                answer::failure(StatusCode::NOT_FOUND, &format!("This pod's role is {name}.")),
            ),
            (Route::Info, Ok((grant, ..))) => Ok(answer::info(&grant.role, SystemTime::now())),
            (_, Ok((grant, key, place))) => {
                match self.parts.sessions.ready(&grant.subject.uid, key, place, recent) {
                    Some(session) => Ok(answer::credentials(session, extended)),
                    None => Err(Lacking::Session { grant, key, extended }),
                }
            }
            (_, Err(reason)) => Ok(refused(&self.parts.reporter.report(&client.uid, reason))),
        }
    }

    async fn read(&self, client: &Client, method: &Method, route: Route, deadline: Instant) -> Answer {
        let route = match route {
            Route::Node(path) if path.is_listing() => {
                return Box::pin(self.list(client, &path, deadline)).await;
            }
            Route::Node(path) => {
                let passthrough = &self.parts.passthrough;
                return Box::pin(passthrough.pass(&client.uid, method, &path, deadline)).await;
            }
            Route::Refused(refusal) => {
                return answer::failure(StatusCode::NOT_FOUND, &refusal.to_string());
            }
            own => own,
        };
        loop {
            let decided = self.decisions.once_known(client, deadline).await;
            match self.by_decision(client, &route, &decided, &mut RecentSession::default()) {
                Ok(answer) => return answer,
                Err(Lacking::Decision(reason)) => {
                    let sentence = self.parts.reporter.report(&client.uid, reason);
                    return answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence);
                }
                Err(Lacking::Session { grant, key, extended }) => {
                    let pod = &grant.subject.uid;
                    let obtained = Box::pin(self.parts.sessions.get(pod, key, deadline)).await;
                    // It may have taken a while, and another role, or none, may be the pod's by now.
                    let now = self.decisions.of(client);
                    let is_forgotten = matches!(obtained, Err(SessionError::Forgotten));
                    if !is_forgotten && (Arc::ptr_eq(&now, &decided) || now.key() == Some(key)) {
                        return self.credentials(grant, obtained, extended);
                    }
                }
            }
        }
    }

    /// A list of the node's metadata, with what the pod may read of it.
    async fn list(&self, client: &Client, path: &NodePath, deadline: Instant) -> Answer {
        let has_role = path.lists_roles()
            && match &*self.decisions.once_known(client, deadline).await {
                Decided::Granted { .. } | Decided::Refused { .. } => true,
                Decided::NoRole(_) => false,
                Decided::Wait(reason) => {
                    let sentence = self.parts.reporter.report(&client.uid, reason);
                    return answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence);
                }
            };
        let visible = |entries: &str| self.parts.paths.visible(path, entries, has_role);
        self.parts
            .passthrough
            .list(&client.uid, path, deadline, visible)
            .await
    }

    fn credentials(&self, grant: &Grant, obtained: Result<Session, SessionError>, extended: bool) -> Answer {
        let error = match obtained {
            Ok(session) => return answer::credentials(&session, extended),
            Err(error) => error,
        };
        let reason = match &error {
            SessionError::Obtain(error) => error.reason(&grant.role),
            SessionError::Paced | SessionError::Forgotten => paced_reason(grant),
        };
        let sentence = self.parts.reporter.report(&grant.subject.uid, &reason);
        match error {
            SessionError::Obtain(ObtainError::Denied(_) | ObtainError::NoToken(_)) => refused(&sentence),
            SessionError::Obtain(ObtainError::Unavailable(_))
            | SessionError::Paced
            | SessionError::Forgotten => answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence),
        }
    }
}

/// The value of a header; an error where there are several. One that is given again is the same: some clients add it with
/// each retry.
fn the_one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<Result<&'a HeaderValue, Several>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let is_one = values.all(|value| value == first);
    Some(is_one.then_some(first).ok_or(Several))
}

struct Several;

fn refused(sentence: &str) -> Answer {
    answer::unauthorized(sentence, SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imds::decisions::tests::{client, decisions, inventory};
    use crate::imds::recent::tests::{ByName, service_with};
    use http_body_util::BodyExt as _;
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
        let service = service_with(
            sessions,
            &node().await,
            pods.subscribe(),
            rules.subscribe(),
            imds_v1,
        );
        let answer = service.rehearse(&client(UID), "/latest/meta-data/").await;
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
        let one = the_one(&headers, &TOKEN);
        let one = one.map(|one| one.ok().map(|value| value.to_str().unwrap()));
        assert_eq!(one, want);
    }
}
