//! Why a pod gets what it gets, for people: the decision with everything that it stands on.
//!
//! The sentence is the [`Reason`]'s, as in the answer, the event and the log; what is added here is what that sentence was
//! made of, and what was probably meant where it is a refusal.

mod hints;
pub mod offline;
mod render;

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use self::render::{columns, short, table};
use crate::credentials::{View, timestamp};
use crate::pods::{Namespace, Pod, ServiceAccount};
use crate::roles::policy::Candidate;
use crate::roles::web_identity::ROLE_KEY;
use crate::roles::{Decision, Principal, Reason, RoleArn, RoleSource, Rules, SessionShape, WrittenRole};

/// Who assumes roles where nobody else is named.
pub const NODE: &str = "the node's role";

/// What comes of a pod's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It has one.
    Granted,
    /// It asks for one, and may not have it.
    Refused,
    /// It may have it, but there are no credentials at the moment.
    Unavailable,
    /// It asks for none.
    NoRole,
    /// It can't be told (yet).
    Waiting,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Granted,
        Self::Refused,
        Self::Unavailable,
        Self::NoRole,
        Self::Waiting,
    ];

    /// By what was decided, before anything is known of a session.
    fn of(decision: &Decision) -> Self {
        match decision {
            Decision::Granted(_) => Self::Granted,
            // Nobody can tell which of them asks.
            Decision::Refused { .. } | Decision::NoRole(Reason::Ambiguous { .. }) => Self::Refused,
            Decision::NoRole(_) => Self::NoRole,
            Decision::Wait(_) => Self::Waiting,
        }
    }

    /// By what was decided, and what there is of the session.
    pub fn with(decision: &Decision, view: Option<&View>, now: SystemTime) -> Self {
        let lacks = |view: &&View| view.valid(now).is_none();
        let failure = view.filter(lacks).and_then(|view| view.failure.as_ref());
        match (decision, failure) {
            (Decision::Granted(grant), Some((error, _))) if error.reason(&grant.role).is_refusal() => {
                Self::Refused
            }
            (Decision::Granted(_), Some(_)) => Self::Unavailable,
            _ => Self::of(decision),
        }
    }

    /// As a label of metrics.
    pub fn metric(self) -> &'static str {
        match self {
            Self::NoRole => "no_role",
            other => other.label(),
        }
    }

    /// In words.
    pub fn label(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
            Self::NoRole => "no role",
            Self::Waiting => "waiting",
        }
    }
}

/// Why a pod gets what it gets. No field is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name`
    pub pod: String,
    /// `metadata.uid`; none of a manifest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// What comes of it.
    pub verdict: Verdict,
    /// Why: the sentence that the pod's answer, its event and the log have.
    pub because: String,
    /// The role's ARN, where one is asked for and can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// What counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<AskedBy>,
    /// What each annotation of the namespace says; empty where it is not asked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyLine>,
    /// How the session is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionLine>,
    /// What there is of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsLine>,
    /// What the pod is answered right now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<AnswerLine>,
    /// Whether something looks as if a role was asked for in a way that is not read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspicious: bool,
    /// What may have been meant, and what to look at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
}

/// Where a role is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AskedBy {
    /// In words.
    pub source: String,
    /// As written.
    pub value: String,
}

/// What an annotation of the namespace says of the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyLine {
    /// Its key.
    pub annotation: String,
    /// Its entries, shortened.
    pub entries: String,
    /// The entry that allows the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_by: Option<String>,
    /// Why it can't be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a session is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionLine {
    /// `RoleSessionName`
    pub name: String,
    /// Who assumes the role.
    pub assumed_by: String,
    /// `ExternalId`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_id: Option<String>,
    /// Session tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Whether other pods of the node with the same role have it too.
    pub shared: bool,
}

/// What there is of a session. Times are RFC 3339, in UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CredentialsLine {
    /// In words: `valid`, `expired`, `being fetched`, `none`.
    pub state: String,
    /// `AccessKeyId`, by which CloudTrail knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// When it was obtained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obtained: Option<String>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Seconds until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// What STS said last, where it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Seconds until STS is asked again for a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_to_retry: Option<u64>,
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnswerLine {
    /// Its path.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// What the body says; of credentials, that they are some.
    pub says: String,
}

/// What a pod's role depends on.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its namespace, where it is known.
    pub namespace: Option<&'a Namespace>,
    /// Its service account, likewise.
    pub account: Option<&'a ServiceAccount>,
}

impl Explanation {
    /// Whether somebody should look at it: a role was asked for, it seems, and is not had.
    pub fn is_bad(&self) -> bool {
        match self.verdict {
            Verdict::Granted => false,
            Verdict::NoRole => self.suspicious,
            Verdict::Refused | Verdict::Unavailable | Verdict::Waiting => true,
        }
    }

    /// Adds what may have been meant. Patterns are tried in other ways for it, which costs more than to decide does, so it is
    /// for those who ask about a pod.
    pub fn add_hints(&mut self, rules: &Rules, subject: &Subject<'_>, decision: &Decision) {
        let asked = if rules.firewall {
            None
        } else {
            asked(rules, subject)
        };
        let role = asked.as_ref().and_then(|(_, written)| resolve(rules, written));
        self.suspicious |= hints::is_suspicious(rules, subject);
        let mut found = hints::of(rules, subject, decision.reason(), asked.as_ref(), role.as_ref());
        found.append(&mut self.hints);
        self.hints = found;
    }

    /// Of a pod, by what was decided about it; what the agent does about it is for the agent to add.
    pub fn of(rules: &Rules, subject: &Subject<'_>, decision: &Decision) -> Self {
        let asked = if rules.firewall {
            None
        } else {
            asked(rules, subject)
        };
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
            role: role.map(|role| role.to_string()),
            asked_by: asked.map(|(source, written)| AskedBy {
                source: source.to_string(),
                value: written,
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

    /// Adds what there is of the session that was granted; where there is none as STS gives none, that is the verdict.
    pub fn add_credentials(&mut self, decision: &Decision, view: Option<&View>, now: SystemTime) {
        let Decision::Granted(grant) = decision else {
            return;
        };
        let role = &grant.role;
        let valid = view.and_then(|view| view.valid(now));
        let failure = view.and_then(|view| view.failure.as_ref());
        self.verdict = Verdict::with(decision, view, now);
        if let (Some((error, _)), None) = (failure, valid) {
            let reason = error.reason(role);
            self.because = reason.to_string();
            self.hints.extend(hints::of_sts(&reason, role));
        }
        let session = view.and_then(|view| view.session.as_ref());
        let state = match session {
            Some(_) if valid.is_some() => "valid",
            Some(_) => "expired",
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

    /// Of a pod that can't be told from another, so that neither gets anything.
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
            hints: Vec::new(),
        }
    }
}

impl SessionLine {
    fn of(shape: &SessionShape) -> Self {
        Self {
            name: shape.name.to_string(),
            assumed_by: match &shape.principal {
                Principal::Node => NODE.to_owned(),
                Principal::ServiceAccount(identity) => format!(
                    "service account {}/{}, by web identity (audience {})",
                    identity.namespace, identity.service_account, identity.audience
                ),
            },
            external_id: shape.external_id.clone(),
            tags: shape
                .tags
                .iter()
                .map(|(key, value)| ((*key).to_owned(), value.clone()))
                .collect(),
            shared: shape.pod.is_none(),
        }
    }
}

/// Who names the role, and as what: the order is that of [`Rules::resolve_pod`].
fn asked(rules: &Rules, subject: &Subject<'_>) -> Option<(RoleSource, String)> {
    let pod = subject.pod;
    if let Some(written) = pod.annotation(&rules.keys.role) {
        let key = rules.keys.role.clone();
        return Some((RoleSource::Annotation { key }, written.to_owned()));
    }
    let account = subject.account.filter(|_| rules.asks_accounts_of(pod));
    if let Some((account, written)) =
        account.and_then(|account| Some((account, account.annotation(ROLE_KEY)?)))
    {
        let source = RoleSource::ServiceAccount {
            key: ROLE_KEY.to_owned(),
            account: account.to_string(),
        };
        return Some((source, written.to_owned()));
    }
    let default = rules.default_role.as_ref().filter(|_| !pod.host_network)?;
    Some((RoleSource::Default, default.name().to_owned()))
}

fn resolve(rules: &Rules, written: &str) -> Option<RoleArn> {
    let written: WrittenRole = written.parse().ok()?;
    written.resolve(rules.base.as_ref()).ok()?
}

#[cfg(test)]
mod situations;
