//! One request of one pod, answered.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::header::HeaderMap;
use hyper::{Method, StatusCode, Uri};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use super::answer::{self, Answer, TOKEN, TOKEN_TTL};
use super::decisions::{Decided, Decisions};
use super::passing::Passing;
use super::path::{Paths, Route};
use super::recent::Recent;
use super::token::{MAX_TTL, Tokens};
use super::told::Told;
use crate::credentials::{
    Issuer, ObtainError, RecentSession, Session, SessionError, SessionKey, Sessions, paced,
};
use crate::measured::RequestKind;
use crate::pods::{Known, PodUid, Pods};
use crate::roles::{Grant, Reason, Rules};

/// Every answer is on its way within this time: two SDKs try once and give up after a second. What is left of it is for getting there.
const ANSWER: Duration = Duration::from_millis(800);

const FORWARDED: &str = "x-forwarded-for";

/// Who asks: identified once per connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The pod.
    pub uid: PodUid,
}

/// Whether requests without a session token (IMDSv1) are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version1 {
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
    pub passing: Passing,
    /// Whether tokens are required.
    pub version1: watch::Receiver<Version1>,
    /// What was said about pods.
    pub told: Arc<Told>,
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
        caller: &Caller,
        method: &Method,
        target: &Uri,
        headers: &HeaderMap,
    ) -> (RequestKind, Answer) {
        let deadline = Instant::now() + ANSWER;
        let route = match self.begin(&mut self.recent(caller), method, target, headers) {
            Ok(answered) => return answered,
            Err(Pending(route)) => route,
        };
        let kind = route.kind();
        let version1 = *self.parts.version1.borrow();
        let left = match self.entitled(caller, headers, version1) {
            Err(Unentitled::NotYet) => self.entitled_later(deadline).await,
            known => known,
        };
        let answer = match left {
            Ok(left) => {
                let response = self.read(caller, method, route, deadline).await;
                answer::with_token_left(response, left)
            }
            Err(unentitled) => unentitled.answer(),
        };
        (kind, answer)
    }

    /// The way to the node's metadata service.
    pub fn passing(&self) -> &Passing {
        &self.parts.passing
    }

    /// The pod of a caller, as `namespace/name`.
    pub fn pod_name(&self, caller: &Caller) -> String {
        match self.parts.pods.borrow().by_uid(&caller.uid) {
            Some(Known::Pod(pod)) => pod.to_string(),
            Some(Known::Ambiguous(_)) => "(several)".to_owned(),
            None => "(not known yet)".to_owned(),
        }
    }

    /// What a caller's connection keeps of its requests.
    pub fn recent<'a>(&self, caller: &'a Caller) -> Recent<'a> {
        let parts = &self.parts;
        Recent::new(
            caller,
            parts.pods.clone(),
            parts.rules.clone(),
            parts.version1.clone(),
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
            (&Method::PUT, Route::Token) => self.issue_token(recent.caller(), headers),
            (_, Route::Token) => answer::not_that_method("PUT", "A token is asked for with PUT."),
            (&Method::GET | &Method::HEAD, route) => {
                let version1 = recent.version1();
                match self.entitled(recent.caller(), headers, version1) {
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
    pub async fn rehearse(&self, caller: &Caller, path: &str) -> Answer {
        let route = self.parts.paths.classify(path);
        self.read(caller, &Method::GET, route, Instant::now() + ANSWER)
            .await
    }

    fn issue_token(&self, caller: &Caller, headers: &HeaderMap) -> Answer {
        let mut told = headers.get_all(TOKEN_TTL).iter();
        let ttl = told.next().filter(|_| told.next().is_none());
        let ttl = ttl
            .and_then(|ttl| ttl.to_str().ok())
            .filter(|ttl| ttl.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|ttl| ttl.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return answer::failure(
                StatusCode::BAD_REQUEST,
                "X-aws-ec2-metadata-token-ttl-seconds must be a number from 1 to 21600.",
            );
        };
        match self.parts.tokens.issue(&caller.uid, ttl, SystemTime::now()) {
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
        caller: &Caller,
        headers: &HeaderMap,
        version1: Version1,
    ) -> Result<Option<Duration>, Unentitled> {
        let mut shown = headers.get_all(TOKEN).iter();
        if let Some(token) = shown.next() {
            let left = self
                .parts
                .tokens
                .check(&caller.uid, token.as_bytes(), SystemTime::now());
            return match (left, shown.next()) {
                (Some(left), None) => Ok(Some(left)),
                _ => Err(Unentitled::BadToken),
            };
        }
        match version1 {
            Version1::Allowed => Ok(None),
            Version1::Denied => Err(Unentitled::NoToken),
            Version1::Unknown => Err(Unentitled::NotYet),
        }
    }

    /// The same of a request without a token, once it is known whether it needs one.
    async fn entitled_later(&self, deadline: Instant) -> Result<Option<Duration>, Unentitled> {
        let mut version1 = self.parts.version1.clone();
        let known = version1.wait_for(|known| *known != Version1::Unknown);
        match Box::pin(tokio::time::timeout_at(deadline, known)).await {
            Ok(Ok(known)) if *known == Version1::Allowed => Ok(None),
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
                let caller = recent.caller();
                let (decided, session) = recent.decided(&self.decisions);
                self.by_decision(caller, route, decided, session).ok()
            }
        }
    }

    /// What is read of a pod's own role, as it was decided.
    ///
    /// # Errors
    /// What there is to wait for.
    fn by_decision<'a>(
        &self,
        caller: &Caller,
        route: &Route,
        decided: &'a Decided,
        recent: &mut RecentSession,
    ) -> Result<Answer, Lacking<'a>> {
        let (name, granted) = match decided {
            Decided::Granted { grant, key, place } => (grant.role.name(), Ok((grant, key, place))),
            Decided::Refused { name, reason } => (name.as_str(), Err(reason)),
            Decided::NoRole(reason) => {
                let sentence = self.parts.told.tell(&caller.uid, reason);
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
            _ if wanted.is_some_and(|wanted| wanted != name) => Ok(answer::failure(
                StatusCode::NOT_FOUND,
                &format!("This pod's role is {name}."),
            )),
            (Route::Info, Ok((grant, ..))) => Ok(answer::info(&grant.role, SystemTime::now())),
            (_, Ok((grant, key, place))) => {
                match self.parts.sessions.ready(&grant.subject.uid, key, place, recent) {
                    Some(session) => Ok(answer::credentials(session, extended)),
                    None => Err(Lacking::Session { grant, key, extended }),
                }
            }
            (_, Err(reason)) => Ok(refused(&self.parts.told.tell(&caller.uid, reason))),
        }
    }

    async fn read(&self, caller: &Caller, method: &Method, route: Route, deadline: Instant) -> Answer {
        let route = match route {
            Route::Node(path) => {
                let passing = &self.parts.passing;
                return Box::pin(passing.pass(&caller.uid, method, &path, deadline)).await;
            }
            Route::Refused(refusal) => {
                return answer::failure(StatusCode::NOT_FOUND, &refusal.to_string());
            }
            own => own,
        };
        loop {
            let decided = self.decisions.once_known(caller, deadline).await;
            match self.by_decision(caller, &route, &decided, &mut RecentSession::default()) {
                Ok(answer) => return answer,
                Err(Lacking::Decision(reason)) => {
                    let sentence = self.parts.told.tell(&caller.uid, reason);
                    return answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence);
                }
                Err(Lacking::Session { grant, key, extended }) => {
                    let pod = &grant.subject.uid;
                    let obtained = Box::pin(self.parts.sessions.get(pod, key, deadline)).await;
                    // It may have taken a while, and another role, or none, may be the pod's by now.
                    let now = self.decisions.of(caller);
                    let is_forgotten = matches!(obtained, Err(SessionError::Forgotten));
                    if !is_forgotten && (Arc::ptr_eq(&now, &decided) || now.key() == Some(key)) {
                        return self.credentials(grant, obtained, extended);
                    }
                }
            }
        }
    }

    fn credentials(&self, grant: &Grant, obtained: Result<Session, SessionError>, extended: bool) -> Answer {
        let error = match obtained {
            Ok(session) => return answer::credentials(&session, extended),
            Err(error) => error,
        };
        let reason = match &error {
            SessionError::Obtain(error) => error.reason(&grant.role),
            SessionError::Paced | SessionError::Forgotten => paced(grant),
        };
        let sentence = self.parts.told.tell(&grant.subject.uid, &reason);
        match error {
            SessionError::Obtain(ObtainError::Denied(_) | ObtainError::NoToken(_)) => refused(&sentence),
            SessionError::Obtain(ObtainError::Unavailable(_))
            | SessionError::Paced
            | SessionError::Forgotten => answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence),
        }
    }
}

fn refused(sentence: &str) -> Answer {
    answer::unauthorized(sentence, SystemTime::now())
}
