//! Discovers the node's own roles, so that no pod gets one of them. There are two sources: the node's metadata
//! service returns the role of the instance profile, and STS returns the role of the agent's credentials, which may
//! be a different role. The agent requests no session before both sources have answered or are known to have no
//! answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::credentials::sts::{IdentityError, Sts};
use crate::credentials::{Issuer, ObtainError, Session, SessionKey};
use crate::imds::upstream::Upstream;
use crate::roles::{OwnRole, OwnRoles, Principal, RoleId, Rules};

type Publish = watch::Sender<Arc<Rules>>;

/// The time before the second attempt. It doubles with each failure.
const MIN_BACKOFF: Duration = Duration::from_millis(100);

/// The longest time between two attempts, while the roles of pods wait for the answer.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The number of consecutive failures after which the agent assumes that the metadata service has no answer. Either
/// the service is disabled (403), or the machine is not an EC2 instance. An agent with other credentials must serve
/// pods there too. A pod's request is held for less than a second, and four immediate failures take 0.7 s. If the
/// agent's credentials are those of the instance profile, STS still returns the profile's role.
const MAX_FAILURES: u32 = 4;

/// The time between two lookups of the instance profile's role, because a profile can be replaced while the instance
/// runs.
const INSTANCE_INTERVAL: Duration = Duration::from_secs(60);

/// The time between two calls of STS. It is long because CloudTrail records each call.
const AGENT_INTERVAL: Duration = Duration::from_secs(3600);

/// An issuer that refuses the node's own roles, and roles that may be the node's own, before the inner issuer is
/// called.
#[derive(Debug)]
pub(super) struct DenyOwnRoles<I> {
    pub issuer: I,
    pub rules: watch::Receiver<Arc<Rules>>,
}

impl<I: Issuer> Issuer for DenyOwnRoles<I> {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        let mut rules = self.rules.clone();
        let is_asked = |rules: &Arc<Rules>| rules.own.agent != OwnRole::Unknown(None);
        let rules = match rules.wait_for(is_asked).await {
            Ok(rules) => Arc::clone(&rules),
            Err(_) => return Err(ObtainError::Unavailable("the agent ends".to_owned())),
        };
        may_be_had(&rules.own, key)?;
        self.issuer.issue(key).await
    }
}

fn may_be_had(own: &OwnRoles, key: &SessionKey) -> Result<(), ObtainError> {
    if own.owner(&key.role).is_some() {
        return Err(ObtainError::Denied(
            "it is one of the node's own roles, which no pod gets".to_owned(),
        ));
    }
    let Some(unknown) = own.unknown_for(key.shape.principal == Principal::Node) else {
        return Ok(());
    };
    Err(ObtainError::Unavailable(format!(
        "whether it is one of the node's own roles, which no pod gets, is not known yet: {}",
        unknown.problem().unwrap_or("they are being looked up")
    )))
}

/// Publishes the node's own roles, and follows their changes. Never ends. Without `sts` the agent assumes no role, so
/// the role of its credentials does not matter.
pub(super) async fn discover(upstream: Upstream, sts: Option<Sts>, rules: Publish) {
    let agent = async {
        match sts {
            Some(sts) => follow_agent(sts, &rules).await,
            None => publish(&rules, |own| own.agent = OwnRole::None),
        }
    };
    tokio::join!(follow_instance(upstream, &rules), agent);
}

async fn follow_instance(upstream: Upstream, rules: &Publish) {
    let (mut backoff, mut failures) = (MIN_BACKOFF, 0);
    loop {
        let found = upstream.instance_role().await;
        let is_answer = found.is_ok();
        failures = if is_answer { 0 } else { failures + 1 };
        let before = rules.borrow().own.instance.clone();
        let now = match found {
            Ok(role) => role.map_or(OwnRole::None, OwnRole::Is),
            Err(error) => after_failure(&before, error.to_string(), failures),
        };
        if now != before {
            log(&now, "the instance profile");
            publish(rules, |own| own.instance = now);
        }
        wait(is_answer, INSTANCE_INTERVAL, &mut backoff).await;
    }
}

/// Returns the known state of the instance's role after a failure. An earlier answer remains valid.
fn after_failure(before: &OwnRole, problem: String, failures: u32) -> OwnRole {
    match before {
        OwnRole::Unknown(_) if failures >= MAX_FAILURES => OwnRole::Undeterminable,
        // The first problem is kept until it is resolved, because later ones differ only in their request ids.
        OwnRole::Unknown(None) => OwnRole::Unknown(Some(problem)),
        before => before.clone(),
    }
}

async fn follow_agent(sts: Sts, rules: &Publish) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let found = sts.node_arn().await;
        let is_answer = found.is_ok();
        let before = rules.borrow().own.agent.clone();
        let now = after_asking(&before, found);
        if now != before {
            log(&now, "the agent's credentials");
            publish(rules, |own| own.agent = now);
        }
        wait(is_answer, AGENT_INTERVAL, &mut backoff).await;
    }
}

/// Returns the known state of the role of the agent's credentials after a call of STS. An earlier answer remains
/// valid if STS fails later. The first of several problems is kept.
fn after_asking(before: &OwnRole, found: Result<String, IdentityError>) -> OwnRole {
    match (found, before) {
        (Ok(arn), _) => RoleId::of_session(&arn).map_or(OwnRole::None, OwnRole::Is),
        (Err(_), OwnRole::Is(_) | OwnRole::None | OwnRole::Undeterminable)
        | (Err(IdentityError::Unavailable(_)), OwnRole::Unknown(Some(_)))
        | (Err(IdentityError::NoCredentials(_)), OwnRole::NoCredentials(_)) => before.clone(),
        (Err(IdentityError::Refused(_)), _) => OwnRole::Undeterminable,
        (Err(error @ IdentityError::NoCredentials(_)), _) => OwnRole::NoCredentials(error.to_string()),
        (Err(error @ IdentityError::Unavailable(_)), _) => OwnRole::Unknown(Some(error.to_string())),
    }
}

fn publish(rules: &Publish, change: impl FnOnce(&mut OwnRoles)) {
    rules.send_modify(|rules| change(&mut Arc::make_mut(rules).own));
}

fn log(now: &OwnRole, whose: &str) {
    match now {
        OwnRole::Is(role) => info!("the role of {whose} is {role}: no pod gets it"),
        OwnRole::None => info!("{whose} has no role that would have to be kept from pods"),
        OwnRole::Undeterminable => warn!(
            "the role of {whose} cannot be found out, so only IAM keeps it from pods; it is tried again"
        ),
        OwnRole::Unknown(_) | OwnRole::NoCredentials(_) => warn!(
            "the role of {whose} is not known yet, and no session is made before it is: {}",
            now.problem().unwrap_or("it is asked for")
        ),
    }
}

async fn wait(is_answer: bool, interval: Duration, backoff: &mut Duration) {
    if is_answer {
        *backoff = MIN_BACKOFF;
        tokio::time::sleep(interval).await;
    } else {
        tokio::time::sleep(*backoff).await;
        *backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::session_name::SessionName;
    use crate::roles::{SessionShape, StsEndpoint, WebIdentity};
    use rstest::rstest;

    fn is(name: &str) -> OwnRole {
        OwnRole::Is(RoleId::new("123456789012", name).unwrap())
    }

    fn unknown(problem: &str) -> OwnRole {
        OwnRole::Unknown(Some(problem.to_owned()))
    }

    #[rstest]
    #[case::the_first_failure_is_shown(OwnRole::Unknown(None), 1, unknown("new"))]
    #[case::and_stays(unknown("old"), 2, unknown("old"))]
    #[case::after_some_there_is_no_answer(unknown("old"), MAX_FAILURES, OwnRole::Undeterminable)]
    #[case::a_role_stays_known(is("node"), MAX_FAILURES, is("node"))]
    #[case::so_does_its_absence(OwnRole::None, MAX_FAILURES, OwnRole::None)]
    fn failures_of_the_metadata_service(
        #[case] before: OwnRole,
        #[case] failures: u32,
        #[case] want: OwnRole,
    ) {
        assert_eq!(after_failure(&before, "new".to_owned(), failures), want);
    }

    #[rstest]
    #[case::a_roles_session("arn:aws:sts::123456789012:assumed-role/node/i-0", is("node"))]
    #[case::a_user("arn:aws:iam::123456789012:user/ops", OwnRole::None)]
    fn an_answer_of_sts_makes_the_role_of_the_credentials_known(#[case] arn: &str, #[case] want: OwnRole) {
        for before in [OwnRole::Unknown(None), is("other"), OwnRole::Undeterminable] {
            assert_eq!(after_asking(&before, Ok(arn.to_owned())), want);
        }
    }

    fn key(role: &str, principal: Principal) -> SessionKey {
        SessionKey {
            role: role.parse().unwrap(),
            shape: SessionShape {
                name: SessionName::cleaned("web"),
                external_id: None,
                tags: crate::roles::SessionTags::default(),
                pod: None,
                principal,
            },
        }
    }

    fn web_identity() -> Principal {
        Principal::ServiceAccount(Box::new(WebIdentity {
            namespace: "apps".to_owned(),
            service_account: "web".to_owned(),
            pod: "web".to_owned(),
            uid: "u".parse().unwrap(),
            audience: "sts.amazonaws.com".to_owned(),
            endpoint: StsEndpoint::Regional,
        }))
    }

    #[rstest]
    #[case::nothing_is_known(OwnRole::Unknown(None), [false, false])]
    #[case::sts_is_away(unknown("away"), [false, false])]
    #[case::a_token_takes_no_credentials(OwnRole::NoCredentials("none".to_owned()), [false, true])]
    #[case::static_keys(OwnRole::None, [true, true])]
    #[case::an_sts_that_does_not_say(OwnRole::Undeterminable, [true, true])]
    #[case::another_role(is("agent"), [true, true])]
    #[case::this_role(is("APP"), [false, false])]
    fn a_session_is_issued_only_if_its_role_is_known_to_differ_from_the_agents_role(
        #[case] agent: OwnRole,
        #[case] want: [bool; 2],
    ) {
        let own = OwnRoles {
            agent,
            ..OwnRoles::default()
        };
        let role = "arn:aws:iam::123456789012:role/app";
        let may = [Principal::Node, web_identity()].map(|who| may_be_had(&own, &key(role, who)).is_ok());
        assert_eq!(may, want);
    }

    #[test]
    fn an_earlier_answer_of_sts_remains_valid_when_sts_fails() {
        let failures = || {
            [
                IdentityError::NoCredentials("x".to_owned()),
                IdentityError::Refused("x".to_owned()),
                IdentityError::Unavailable("x".to_owned()),
            ]
        };
        for before in [is("node"), OwnRole::None, OwnRole::Undeterminable] {
            for failure in failures() {
                assert_eq!(after_asking(&before, Err(failure)), before);
            }
        }
        let [without, refused, away] =
            failures().map(|failure| after_asking(&OwnRole::Unknown(None), Err(failure)));
        assert!(matches!(without, OwnRole::NoCredentials(_)));
        assert_eq!(refused, OwnRole::Undeterminable);
        assert!(matches!(away, OwnRole::Unknown(Some(_))));
    }
}
