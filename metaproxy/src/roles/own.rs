//! The roles that the node and its agent have themselves: no pod gets one of them, whatever IAM allows.

use std::fmt;

use super::RoleArn;
use super::arn::{check_account, is_name};
use super::reason::{Reason, RoleSource};

/// What IAM knows a role by: the account and the name. A name is unique within its account whatever the role's path, and
/// upper and lower case do not make two of it (IAM user guide, "IAM and AWS STS quotas": names are not distinguished by
/// case). An account belongs to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleId {
    account: Box<str>,
    /// In lower case.
    name: Box<str>,
}

impl RoleId {
    /// Checks and combines a 12-digit account and a role's name; `None` if one of them is malformed.
    pub fn new(account: &str, name: &str) -> Option<Self> {
        (check_account(account).is_ok() && is_name(name)).then(|| Self {
            account: account.into(),
            name: name.to_ascii_lowercase().into(),
        })
    }

    /// Reads the role from the ARN of one of its sessions, `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`, as
    /// `GetCallerIdentity` returns it. `None` for all other callers: users, the root user, federated users.
    pub fn of_session(arn: &str) -> Option<Self> {
        let parts: Vec<&str> = arn.splitn(6, ':').collect();
        let ["arn", _, "sts", "", account, resource] = parts[..] else {
            return None;
        };
        let (name, _) = resource.strip_prefix("assumed-role/")?.split_once('/')?;
        Self::new(account, name)
    }

    /// Whether an ARN names this role, in whatever spelling.
    pub fn is(&self, role: &RoleArn) -> bool {
        *self.account == *role.account() && self.name.eq_ignore_ascii_case(role.name())
    }
}

impl fmt::Display for RoleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of account {}", self.name, self.account)
    }
}

impl From<&RoleArn> for RoleId {
    fn from(role: &RoleArn) -> Self {
        Self {
            account: role.account().into(),
            name: role.name().to_ascii_lowercase().into(),
        }
    }
}

/// What has been found out about one of the node's own roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OwnRole {
    /// Nothing yet, with the last failure if there was one.
    Unknown(Option<String>),
    /// There are no credentials at the moment, so there is nothing to assume a role with.
    NoCredentials(String),
    /// It cannot be found out, so it cannot be kept from pods. Discovery goes on.
    Undeterminable,
    /// There is none.
    #[default]
    None,
    /// This one.
    Is(RoleId),
}

/// Which of the node's own roles a role is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// That of the instance profile, or of the agent's credentials.
    Node,
    /// That of `--assume-role-arn`.
    Intermediate,
}

/// Everything that is known of the node's own roles. The default is that there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnRoles {
    /// The role of the instance profile, by the node's metadata service.
    pub instance: OwnRole,
    /// The role behind the agent's AWS credentials, by STS. It is the same one unless the agent has other credentials.
    pub agent: OwnRole,
    /// `--assume-role-arn`
    pub intermediate: Option<RoleId>,
}

impl OwnRoles {
    /// Starts with nothing found out.
    pub fn unknown() -> Self {
        Self {
            instance: OwnRole::Unknown(None),
            agent: OwnRole::Unknown(None),
            intermediate: None,
        }
    }

    /// Says which of the node's own roles a role is; `None` if it is none of those that are known.
    pub fn owner(&self, role: &RoleArn) -> Option<Owner> {
        let is = |own: &OwnRole| matches!(own, OwnRole::Is(id) if id.is(role));
        if is(&self.instance) || is(&self.agent) {
            return Some(Owner::Node);
        }
        let intermediate = self.intermediate.as_ref().filter(|id| id.is(role));
        intermediate.map(|_| Owner::Intermediate)
    }

    /// Whether no role is decided about yet, as it may be that of the instance profile.
    pub fn holds_decisions(&self) -> bool {
        matches!(self.instance, OwnRole::Unknown(_))
    }

    /// Returns why a role is refused, if it is one of these.
    pub(super) fn refusal(&self, role: &RoleArn, source_: &RoleSource) -> Option<Reason> {
        let owner = self.owner(role)?;
        let (role, source_) = (role.clone(), source_.clone());
        Some(match owner {
            Owner::Node => Reason::NodeRole { role, source_ },
            Owner::Intermediate => Reason::IntermediateRole { role, source_ },
        })
    }

    /// Returns why a role cannot be granted yet: it may still turn out to be that of the instance profile. That of the
    /// agent's credentials is waited for when a session is to be made, since STS, which says it, may be away.
    pub(super) fn to_wait_for(&self, role: &RoleArn) -> Option<Reason> {
        self.holds_decisions().then(|| Reason::NodeRoleUnknown {
            role: role.clone(),
            problem: self.instance.problem().map(str::to_owned),
        })
    }

    /// Returns the role that is still unknown, and so may be the one of which a session is to be made. `as_node`: the
    /// session is made with the agent's credentials, and not with a token of the pod, which needs none.
    pub fn unknown_for(&self, as_node: bool) -> Option<&OwnRole> {
        [&self.instance, &self.agent].into_iter().find(|own| match own {
            OwnRole::Unknown(_) => true,
            OwnRole::NoCredentials(_) => as_node,
            OwnRole::Undeterminable | OwnRole::None | OwnRole::Is(_) => false,
        })
    }
}

impl OwnRole {
    /// Returns why it is not known.
    pub fn problem(&self) -> Option<&str> {
        match self {
            Self::Unknown(problem) => problem.as_deref(),
            Self::NoCredentials(problem) => Some(problem),
            Self::Undeterminable | Self::None | Self::Is(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn node() -> RoleId {
        RoleId::new("123456789012", "Node-Role").unwrap()
    }

    #[rstest]
    #[case("arn:aws:iam::123456789012:role/Node-Role", true)]
    #[case("ARN:aws:iam::123456789012:role/Node-Role", true)]
    #[case("arn:aws:iam::123456789012:role/node-role", true)]
    #[case("arn:aws:iam::123456789012:role/NODE-ROLE", true)]
    #[case("arn:aws:iam::123456789012:role/any/path/Node-Role", true)]
    #[case("arn:aws-cn:iam::123456789012:role/Node-Role", true)]
    #[case("arn:aws:iam::123456789012:role/Node-Role/app", false)]
    #[case("arn:aws:iam::123456789012:role/Node-Role2", false)]
    #[case("arn:aws:iam::210987654321:role/Node-Role", false)]
    fn a_role_is_known_by_account_and_name_in_any_spelling(#[case] arn: &str, #[case] is: bool) {
        assert_eq!(node().is(&arn.parse().unwrap()), is);
    }

    #[rstest]
    #[case("arn:aws:sts::123456789012:assumed-role/Node-Role/i-0abc", Some(node()))]
    #[case("arn:aws-us-gov:sts::123456789012:assumed-role/node-role/x", Some(node()))]
    #[case("arn:aws:iam::123456789012:user/Node-Role", None)]
    #[case("arn:aws:iam::123456789012:root", None)]
    #[case("arn:aws:sts::123456789012:federated-user/Node-Role", None)]
    #[case("arn:aws:sts::123456789012:assumed-role/Node-Role", None)]
    #[case("arn:aws:sts::1234:assumed-role/Node-Role/i-0abc", None)]
    #[case("", None)]
    fn a_sessions_arn_names_its_role_and_other_callers_have_none(
        #[case] arn: &str,
        #[case] want: Option<RoleId>,
    ) {
        assert_eq!(RoleId::of_session(arn), want);
    }

    #[test]
    fn no_session_is_made_before_both_sources_have_said_theirs() {
        let mut own = OwnRoles::unknown();
        assert!(own.holds_decisions());
        assert!(own.unknown_for(true).is_some() && own.unknown_for(false).is_some());
        own.instance = OwnRole::Is(node());
        assert!(!own.holds_decisions());
        assert!(
            own.unknown_for(true).is_some() && own.unknown_for(false).is_some(),
            "the agent may have other credentials"
        );
        own.agent = OwnRole::NoCredentials("none".to_owned());
        assert!(own.unknown_for(true).is_some(), "they may come in a moment");
        assert!(own.unknown_for(false).is_none(), "a pod's token needs none");
        for settled in [OwnRole::None, OwnRole::Undeterminable, OwnRole::Is(node())] {
            own.agent = settled;
            assert!(own.unknown_for(true).is_none() && own.unknown_for(false).is_none());
        }
    }
}
