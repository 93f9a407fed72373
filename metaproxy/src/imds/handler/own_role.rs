//! Answers requests of a pod about its own role.

use std::sync::Arc;

use tokio::time::Instant;

use super::Handler;
use crate::credentials::{Issuer, ObtainError, Session, SessionError, SessionKey, paced_reason};
use crate::identify::Client;
use crate::imds::decisions::{GrantedSession, PodDecision};
use crate::imds::outcome::Outcome;
use crate::imds::path::Route;
use crate::roles::{Decision, Grant, Reason};

/// What is missing for an answer to a request of a pod about its own role.
pub(super) enum Lacking<'a> {
    Decision(&'a Reason),
    Session {
        grant: &'a Grant,
        key: &'a SessionKey,
        extended: bool,
    },
}

impl<I: Issuer> Handler<I> {
    /// Answers a request of a pod about its own role from the decision about the pod. Returns what is missing if the
    /// request must wait.
    pub(super) fn own<'a>(&self, route: &Route, decided: &'a PodDecision) -> Result<Outcome, Lacking<'a>> {
        let (name, granted) = match decided {
            Decision::Granted(granted) => (granted.grant.role.name(), Ok(granted)),
            Decision::Refused { name, reason } => (name.as_str(), Err(reason)),
            Decision::NoRole(reason) => return Ok(Outcome::NoRole(reason.clone())),
            Decision::Wait(reason) => return Err(Lacking::Decision(reason)),
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
            (Route::Info, Ok(granted)) => Ok(Outcome::RoleInfo(granted.grant.role.clone())),
            (_, Ok(granted)) => {
                let GrantedSession { grant, key, handle } = &**granted;
                match self.parts.sessions.ready(&grant.subject.uid, key, handle) {
                    Some(session) => Ok(Outcome::Credentials { session, extended }),
                    None => Err(Lacking::Session { grant, key, extended }),
                }
            }
            (_, Err(reason)) => Ok(Outcome::Refused(reason.clone())),
        }
    }

    /// Answers a request of a pod about its own role when there is a session, or at the deadline.
    pub(super) async fn wait_for_own(
        &self,
        client: &Client,
        route: &Route,
        mut decided: Arc<PodDecision>,
        deadline: Instant,
    ) -> Outcome {
        loop {
            match self.own(route, &decided) {
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
}

/// Makes the outcome of a request for credentials from the result of obtaining the session.
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
