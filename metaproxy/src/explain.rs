//! Builds explanations: a decision with everything that it depends on.
//!
//! The sentence of an explanation is the text of the [`Reason`], as in the answer, the event and the log. This module
//! adds the facts behind that sentence, and hints on the probable intention if it is a refusal.

mod hints;
mod lines;
pub mod offline;
mod render;
mod verdict;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use self::lines::{AnswerLine, AskedBy, CredentialsLine, PolicyLine, SessionLine};
pub use self::render::{columns, printable, short, table};
pub use self::verdict::Verdict;
use crate::credentials::{SessionView, timestamp};
use crate::pods::{CredentialVariable, Namespace, Pod, ServiceAccount};
use crate::roles::policy::Candidate;
use crate::roles::{Decision, Reason, RoleArn, RoleSource, Rules, WrittenRole};

/// The principal that assumes roles, if no service account does.
pub const NODE: &str = "the node's role";

/// The explanation why a pod gets its role or none. No field is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name`
    pub pod: String,
    /// `metadata.uid`; pods of manifests have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The outcome.
    pub verdict: Verdict,
    /// The sentence of the reason, which the pod's answer, its event and the log have too.
    pub because: String,
    /// The ARN of the role that the pod requests, if it can be resolved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The source that gives the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<AskedBy>,
    /// The opinion of each annotation of the namespace; empty if the namespace's policy is not checked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLine>,
    /// The parameters of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionLine>,
    /// The state of the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsLine>,
    /// The answers that the agent would give the pod at this moment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerLine>,
    /// Whether an annotation or label looks like a request for a role, but is not read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspicious: bool,
    /// Variables of the pod's containers in which SDKs find credentials before they ask the metadata service; empty
    /// without a role.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_credentials: Vec<String>,
    /// Hints for operators: the probable intention, and what to check.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// The objects that a pod's role depends on.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The pod's namespace, if it is known.
    pub namespace: Option<&'a Namespace>,
    /// The pod's service account, if it is known.
    pub account: Option<&'a ServiceAccount>,
}

impl Explanation {
    /// Says whether the pod does not get a role that it requests, or seems to request.
    pub fn is_bad(&self) -> bool {
        match self.verdict {
            Verdict::Granted => false,
            Verdict::NoRole => self.suspicious,
            Verdict::Refused
            | Verdict::Unavailable
            | Verdict::NotIntercepted
            | Verdict::Waiting
            | Verdict::Unknown => true,
        }
    }

    /// Adds hints. They cost more than the decision, because patterns are compiled in several ways, so they are added
    /// only if an operator asks about a pod.
    pub fn add_hints(&mut self, rules: &Rules, subject: &Subject<'_>, decision: &Decision) {
        let asked = asked(rules, subject).map(|(_, written)| (written, resolve(rules, written)));
        let asked = asked
            .as_ref()
            .and_then(|(written, role)| Some((*written, role.as_ref()?)));
        self.suspicious |= hints::is_suspicious(rules, subject);
        let mut found = hints::of(rules, subject, decision.reason(), asked);
        found.append(&mut self.hints);
        self.hints = found;
    }

    /// Builds the explanation of a decision. The agent adds the session and the answers later.
    pub fn of(rules: &Rules, subject: &Subject<'_>, decision: &Decision) -> Self {
        let asked = asked(rules, subject);
        let role = asked.as_ref().and_then(|(_, written)| resolve(rules, written));
        let annotated = asked
            .as_ref()
            .is_some_and(|(source, _)| *source != RoleSource::Default);
        let policies = match (&role, &asked, subject.namespace) {
            (Some(role), Some((_, written)), Some(namespace)) if annotated && rules.namespaces.required => {
                let candidate = Candidate::new(role, written, rules.base.as_ref());
                rules.namespaces.opinions(&rules.keys, &candidate, namespace)
            }
            _ => Vec::new(),
        };
        Self {
            pod: subject.pod.to_string(),
            uid: Some(subject.pod.uid.to_string()),
            verdict: Verdict::of(decision),
            because: decision.reason().to_string(),
            suspicious: false,
            hints: Vec::new(),
            other_credentials: match &asked {
                Some((source, _)) => other_credentials(subject.pod, source),
                None => Vec::new(),
            },
            role: role.map(|role| role.to_string()),
            asked_by: asked.map(|(source, written)| AskedBy {
                source: source.to_string(),
                value: written.to_owned(),
            }),
            policies: policies
                .into_iter()
                .map(|opinion| PolicyLine {
                    annotation: opinion.key,
                    entries: opinion.shown,
                    problem: opinion.allows.as_ref().err().map(ToString::to_string),
                    allowed_by: opinion.allows.ok().flatten(),
                })
                .collect(),
            session: match decision {
                Decision::Granted(grant) => Some(SessionLine::of(&grant.session)),
                _ => None,
            },
            credentials: None,
            answers: Vec::new(),
        }
    }

    /// Adds the state of the granted session. If STS gives no session, the verdict says so.
    pub fn add_credentials(&mut self, decision: &Decision, view: Option<&SessionView>, now: SystemTime) {
        let Decision::Granted(grant) = decision else {
            return;
        };
        let role = &grant.role;
        let valid = view.and_then(|view| view.valid(now));
        let failure = view.and_then(|view| view.failure.as_ref());
        self.verdict = Verdict::with(decision, view, now);
        if let Some(reason) = view.and_then(|view| view.lacking(grant, now)) {
            self.because = reason.to_string();
            self.hints.extend(hints::of_sts(&reason, role));
        }
        let is_paced = view.is_some_and(|view| view.paced.is_some());
        let session = view.and_then(|view| view.session.as_ref());
        let state = match session {
            Some(_) if valid.is_some() => "valid",
            Some(_) => "expired",
            None if is_paced => "waiting for the pod's turn",
            None if view.is_some_and(|view| view.fetching) => "being fetched",
            None => "none",
        };
        self.credentials = Some(CredentialsLine {
            state: state.to_owned(),
            access_key_id: session.map(|session| session.access_key_id().to_owned()),
            obtained: session.map(|session| timestamp(session.obtained())),
            expires: session.map(|session| timestamp(session.expiration())),
            seconds_left: session.map(|session| session.left(now).as_secs()),
            last_error: failure.map(|(error, _)| error.to_string()),
            seconds_to_retry: failure.map(|(_, pause)| pause.as_secs()),
        });
    }

    /// Sets the verdict of a pod whose connections do not reach the agent; `why` replaces the sentence.
    pub fn set_not_intercepted(&mut self, why: String) {
        self.verdict = Verdict::NotIntercepted;
        self.because = why;
    }

    /// Adds the answers that the pod gets. If one of them is 503, the verdict says so, because the state may have
    /// changed since the decision.
    pub fn add_answers(&mut self, answers: Vec<AnswerLine>) {
        let last = answers.last().filter(|last| last.status == 503);
        if let (Verdict::Granted, Some(last)) = (self.verdict, last) {
            self.verdict = Verdict::Unavailable;
            self.because.clone_from(&last.says);
        }
        self.answers = answers;
    }

    /// Builds the explanation of a pod that shares its UID with another one, so that neither gets credentials.
    pub fn of_ambiguous(pod: &Pod, reason: &Reason) -> Self {
        Self {
            pod: pod.to_string(),
            uid: Some(pod.uid.to_string()),
            verdict: Verdict::Refused,
            because: reason.to_string(),
            role: None,
            asked_by: None,
            policies: Vec::new(),
            session: None,
            credentials: None,
            answers: Vec::new(),
            suspicious: false,
            other_credentials: Vec::new(),
            hints: Vec::new(),
        }
    }
}

/// Returns the variables in which an SDK finds credentials before it asks the metadata service. IRSA's token is left
/// out if the pod's role is that of its service account, because it leads to the same role.
fn other_credentials(pod: &Pod, source: &RoleSource) -> Vec<String> {
    let of_account = matches!(source, RoleSource::ServiceAccount { .. });
    let is_other =
        |one: &&CredentialVariable| !of_account || **one != CredentialVariable::AwsWebIdentityTokenFile;
    let found = pod.other_credentials.iter().filter(is_other);
    found
        .map(|one| format!("{} ({})", one.name(), one.set_by()))
        .collect()
}

/// Returns the source that gives the role, and the role as written.
fn asked<'a>(rules: &'a Rules, subject: &Subject<'a>) -> Option<(RoleSource, &'a str)> {
    if rules.firewall {
        return None;
    }
    rules.naming(subject.pod, subject.account).named(rules)
}

fn resolve(rules: &Rules, written: &str) -> Option<RoleArn> {
    let written: WrittenRole = written.parse().ok()?;
    written.resolve(rules.base.as_ref()).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    /// The first request for a session may be the one that `explain` makes for the pod.
    #[rstest]
    #[case::served(Verdict::Granted, 200, Verdict::Granted, "decided")]
    #[case::not_served(Verdict::Granted, 503, Verdict::Unavailable, "answered")]
    #[case::not_decided(Verdict::Waiting, 503, Verdict::Waiting, "decided")]
    fn a_grant_that_is_answered_503_becomes_unavailable(
        #[case] decided: Verdict,
        #[case] status: u16,
        #[case] verdict: Verdict,
        #[case] because: &str,
    ) {
        let pod = serde_json::json!({ "metadata": { "name": "web", "uid": "u" } });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        let mut one = Explanation {
            verdict: decided,
            because: "decided".to_owned(),
            ..Explanation::of_ambiguous(&pod, &Reason::Firewall)
        };
        let line = |status: u16| AnswerLine {
            path: "/".to_owned(),
            status,
            says: "answered".to_owned(),
        };
        one.add_answers(vec![line(200), line(status)]);
        assert_eq!((one.verdict, one.because.as_str()), (verdict, because));
        assert_eq!(one.answers.len(), 2);
    }
}
