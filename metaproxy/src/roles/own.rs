//! Identifies the roles of the node and of its agent. No pod gets one of them, even if IAM allows it.

use std::fmt;

use super::RoleArn;
use super::arn::{check_account, is_name};
use super::reason::{Reason, RoleSource};

/// The identity of a role in IAM: account and name. Within an account a name is unique, even among roles with
/// different paths, and names are not distinguished by case (IAM user guide, "IAM and AWS STS quotas"). An account
/// belongs to one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleId {
    account: Box<str>,
    /// The role's name, in lower case.
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

    /// Says whether an ARN names this role, in any spelling.
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

/// The state of the discovery of one of the node's own roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OwnRole {
    /// The role is not known yet. The text is the last failure, if there was one.
    Unknown(Option<String>),
    /// The agent has no credentials at the moment, so it can't assume any role. The text says why.
    NoCredentials(String),
    /// The role cannot be determined, so it cannot be denied to pods. Discovery continues.
    Undeterminable,
    /// There is no such role.
    #[default]
    None,
    /// The role is known.
    Is(RoleId),
}

/// The two kinds of the node's own roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The role of the instance profile, or of the agent's credentials.
    Node,
    /// The role of `--assume-role-arn`.
    Intermediate,
}

/// The known state of the node's own roles. By default there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnRoles {
    /// The role of the instance profile, as the node's metadata service names it.
    pub instance: OwnRole,
    /// The role of the agent's AWS credentials, as STS names it. It is the role of the instance profile unless the
    /// agent has other credentials.
    pub agent: OwnRole,
    /// The role of `--assume-role-arn`.
    pub intermediate: Option<RoleId>,
}

impl OwnRoles {
    /// Returns the state before discovery.
    pub fn unknown() -> Self {
        Self {
            instance: OwnRole::Unknown(None),
            agent: OwnRole::Unknown(None),
            intermediate: None,
        }
    }

    /// Says which of the node's own roles a role is; `None` if it is none of the known ones.
    pub fn owner(&self, role: &RoleArn) -> Option<Owner> {
        let is = |own: &OwnRole| matches!(own, OwnRole::Is(id) if id.is(role));
        if is(&self.instance) || is(&self.agent) {
            return Some(Owner::Node);
        }
        let intermediate = self.intermediate.as_ref().filter(|id| id.is(role));
        intermediate.map(|_| Owner::Intermediate)
    }

    /// Says whether decisions wait, because any role may be that of the instance profile.
    pub fn holds_decisions(&self) -> bool {
        matches!(self.instance, OwnRole::Unknown(_))
    }

    /// Returns the reason of a refusal if the role is one of the node's own.
    pub(super) fn refusal(&self, role: &RoleArn, given_by: &RoleSource) -> Option<Reason> {
        let owner = self.owner(role)?;
        let (role, given_by) = (role.clone(), given_by.clone());
        Some(match owner {
            Owner::Node => Reason::NodeRole { role, given_by },
            Owner::Intermediate => Reason::IntermediateRole { role, given_by },
        })
    }

    /// Returns the reason to wait if the role may still turn out to be that of the instance profile. The role of the
    /// agent's credentials is waited for later, when a session is obtained: STS names it, and a decision must not
    /// depend on STS.
    pub(super) fn to_wait_for(&self, role: &RoleArn) -> Option<Reason> {
        self.holds_decisions().then(|| Reason::NodeRoleUnknown {
            role: role.clone(),
            problem: self.instance.problem().map(str::to_owned),
        })
    }

    /// Returns an own role that is still unknown, and therefore may be the role of the requested session. `as_node`
    /// says that the session is obtained with the agent's credentials. A session that is obtained with a token of the
    /// pod needs no credentials of the agent.
    pub fn unknown_for(&self, as_node: bool) -> Option<&OwnRole> {
        [&self.instance, &self.agent].into_iter().find(|own| match own {
            OwnRole::Unknown(_) => true,
            OwnRole::NoCredentials(_) => as_node,
            OwnRole::Undeterminable | OwnRole::None | OwnRole::Is(_) => false,
        })
    }
}

impl OwnRole {
    /// Returns why the role is not known.
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
    fn a_role_is_identified_by_account_and_name_in_any_spelling(#[case] arn: &str, #[case] is: bool) {
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
    fn a_sessions_arn_gives_its_role_and_other_arns_give_none(
        #[case] arn: &str,
        #[case] want: Option<RoleId>,
    ) {
        assert_eq!(RoleId::of_session(arn), want);
    }

    #[test]
    fn no_session_is_obtained_before_both_own_roles_are_known() {
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
