//! One request of one pod, answered.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::header::HeaderMap;
use hyper::{Method, StatusCode};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::answer::{self, Answer, TOKEN_TTL};
use super::path::Path;
use super::token::{MAX_TTL, Tokens};
use crate::credentials::{Issuer, ObtainError, SessionKey, Sessions, timestamp};
use crate::pods::{Inventory, Known, PodUid, Pods};
use crate::roles::{Decision, Grant, Reason, Rules};

/// Every answer is on its way within this time: two SDKs try once and give up after a second.
const ANSWER: Duration = Duration::from_millis(850);

const TOKEN: &str = "x-aws-ec2-metadata-token";
const FORWARDED: &str = "x-forwarded-for";

/// Who asks: identified once per connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The pod.
    pub uid: PodUid,
    /// The address that it came from.
    pub address: IpAddr,
}

/// What answers requests.
#[derive(Debug)]
pub struct Service<I> {
    pods: Pods,
    rules: Arc<Rules>,
    sessions: Sessions<I>,
    tokens: Tokens,
    told: Told,
}

/// The request's token is not one of this pod's, or has expired.
struct BadToken;

/// A role in the list, and how its credentials are had.
enum Listed {
    Granted(Grant),
    Refused { name: String, reason: Reason },
}

impl<I: Issuer> Service<I> {
    /// Puts together what is needed for an answer.
    pub fn new(pods: Pods, rules: Arc<Rules>, sessions: Sessions<I>, tokens: Tokens) -> Self {
        Self {
            pods,
            rules,
            sessions,
            tokens,
            told: Told::default(),
        }
    }

    /// Answers one request; its body, if any, was read and dropped.
    pub async fn answer(&self, caller: &Caller, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        let deadline = Instant::now() + ANSWER;
        let path = Path::classify(path);
        match (method, path) {
            (&Method::PUT, Path::Token) => self.issue_token(caller, headers),
            (_, Path::Token) => {
                answer::failure(StatusCode::METHOD_NOT_ALLOWED, "A token is asked for with PUT.")
            }
            (&Method::GET | &Method::HEAD, path) => match self.token_left(caller, headers) {
                Ok(left) => answer::with_token_left(self.read(caller, path, deadline).await, left),
                Err(BadToken) => answer::failure(
                    StatusCode::UNAUTHORIZED,
                    "The token has expired, or was not issued to this pod; ask for another.",
                ),
            },
            _ => answer::failure(StatusCode::METHOD_NOT_ALLOWED, "Metadata is read with GET."),
        }
    }

    fn issue_token(&self, caller: &Caller, headers: &HeaderMap) -> Answer {
        if headers.contains_key(FORWARDED) {
            return answer::failure(
                StatusCode::FORBIDDEN,
                "A request with X-Forwarded-For came through a proxy, and gets no token.",
            );
        }
        let ttl = headers
            .get(TOKEN_TTL)
            .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let Some(ttl) = ttl.filter(|ttl| (1..=MAX_TTL).contains(ttl)) else {
            return answer::failure(
                StatusCode::BAD_REQUEST,
                "X-aws-ec2-metadata-token-ttl-seconds must be a number from 1 to 21600.",
            );
        };
        match self.tokens.issue(&caller.uid, ttl, SystemTime::now()) {
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

    /// What is left of the request's token; `None` where it has none.
    fn token_left(&self, caller: &Caller, headers: &HeaderMap) -> Result<Option<Duration>, BadToken> {
        let Some(token) = headers.get(TOKEN) else {
            return Ok(None);
        };
        self.tokens
            .check(&caller.uid, token.as_bytes(), SystemTime::now())
            .map(Some)
            .ok_or(BadToken)
    }

    async fn read(&self, caller: &Caller, path: Path<'_>, deadline: Instant) -> Answer {
        let wanted = match path {
            Path::Roles => None,
            Path::Role(name) => Some(name),
            Path::Token | Path::Other => {
                return answer::failure(
                    StatusCode::NOT_FOUND,
                    "metaproxy does not serve this path to pods.",
                );
            }
        };
        let listed = match self.listed(caller, deadline).await {
            Ok(listed) => listed,
            Err(none) => return none,
        };
        let name = match &listed {
            Listed::Granted(grant) => grant.role.name(),
            Listed::Refused { name, .. } => name,
        };
        match (wanted, &listed) {
            (None, _) => answer::role_list(name),
            (Some(wanted), _) if wanted != name => {
                answer::failure(StatusCode::NOT_FOUND, &format!("This pod's role is {name}."))
            }
            (Some(_), Listed::Granted(grant)) => self.credentials(grant, deadline).await,
            (Some(_), Listed::Refused { reason, .. }) => refused(&self.told.tell(&caller.uid, reason)),
        }
    }

    /// The pod's role; held until it is known, `deadline` at the latest.
    async fn listed(&self, caller: &Caller, deadline: Instant) -> Result<Listed, Answer> {
        let mut pods = self.pods.clone();
        loop {
            let inventory = Arc::clone(&pods.borrow_and_update());
            // Its known addresses may be those of a moment ago.
            let decision = match check_address(&inventory, caller) {
                Ok(()) => self.rules.resolve(&inventory, &caller.uid),
                Err(reason) => Decision::Wait(reason),
            };
            match decision {
                Decision::Granted(grant) => return Ok(Listed::Granted(grant)),
                Decision::Refused { name, reason } => return Ok(Listed::Refused { name, reason }),
                Decision::NoRole(reason) => {
                    debug!("{reason}");
                    return Err(answer::failure(StatusCode::NOT_FOUND, &reason.to_string()));
                }
                Decision::Wait(reason) => {
                    let changed = tokio::time::timeout_at(deadline, pods.changed()).await;
                    if !matches!(changed, Ok(Ok(()))) {
                        warn!("{reason}");
                        return Err(answer::failure(
                            StatusCode::SERVICE_UNAVAILABLE,
                            &reason.to_string(),
                        ));
                    }
                }
            }
        }
    }

    async fn credentials(&self, grant: &Grant, deadline: Instant) -> Answer {
        let key = SessionKey::of_grant(grant);
        match self.sessions.get(&key, deadline).await {
            Ok(session) => answer::credentials(&session),
            Err(error) => {
                let sentence = self.told.tell(&grant.subject.uid, &error.reason(&grant.role));
                match error {
                    ObtainError::Denied(_) => refused(&sentence),
                    ObtainError::Unavailable(_) => {
                        answer::failure(StatusCode::SERVICE_UNAVAILABLE, &sentence)
                    }
                }
            }
        }
    }
}

fn refused(sentence: &str) -> Answer {
    answer::unauthorized(sentence, &timestamp(SystemTime::now()))
}

/// What was logged last about each pod, so that one that asks again and again does not fill the log.
#[derive(Debug, Default)]
struct Told(Mutex<HashMap<PodUid, String>>);

impl Told {
    /// More pods than a node has; then it begins anew.
    const MAX: usize = 4096;

    /// Logs a reason, as a warning where it is new for this pod; and returns it as a sentence.
    fn tell(&self, uid: &PodUid, reason: &Reason) -> String {
        let sentence = reason.to_string();
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(uid) == Some(&sentence) {
            debug!("{sentence}");
            return sentence;
        }
        warn!("{sentence}");
        if told.len() >= Self::MAX {
            told.clear();
        }
        told.insert(uid.clone(), sentence.clone());
        sentence
    }
}

/// Where a pod's addresses are known, nobody else's connection passes for it. hostNetwork pods have the node's.
fn check_address(inventory: &Inventory, caller: &Caller) -> Result<(), Reason> {
    match inventory.by_uid(&caller.uid) {
        Some(Known::Pod(pod))
            if !pod.host_network && !pod.ips.is_empty() && !pod.ips.contains(&caller.address) =>
        {
            Err(Reason::ForeignAddress { pod: pod.to_string() })
        }
        _ => Ok(()),
    }
}
