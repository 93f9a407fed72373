//! Finds the source that gives a pod its role, in the order of deploy/docs/roles.md, "Role of a pod". The decision
//! and its explanation both call this module, so that they cannot differ.

use super::reason::RoleSource;
use super::web_identity::ROLE_KEY;
use super::{Rules, WrittenRole};
use crate::pods::{Mirror, Pod, ServiceAccount};

/// The first source that gives a pod a role.
#[derive(Clone, Copy, Debug)]
pub enum Naming<'a> {
    /// The pod's annotation gives it.
    Pod {
        /// The role as written.
        written: &'a str,
    },
    /// The annotation of the pod's service account gives it.
    Account {
        /// The service account.
        account: &'a ServiceAccount,
        /// The role as written.
        written: &'a str,
    },
    /// The service account may give a role, and is not known (yet).
    UnknownAccount,
    /// `--default-role` gives it.
    Default(&'a WrittenRole),
    /// Nothing gives the pod a role.
    NoRole,
}

impl<'a> Naming<'a> {
    /// Returns the source and the role as written; `None` if there is no source, or if it is not known yet.
    pub fn named(&self, rules: &Rules) -> Option<(RoleSource, &'a str)> {
        Some(match *self {
            Self::Pod { written } => {
                let key = rules.keys.role.clone();
                (RoleSource::Annotation { key }, written)
            }
            Self::Account { account, written } => {
                let source = RoleSource::ServiceAccount {
                    key: ROLE_KEY.to_owned(),
                    account: account.to_string(),
                };
                (source, written)
            }
            Self::Default(role) => (RoleSource::Default, role.name()),
            Self::UnknownAccount | Self::NoRole => return None,
        })
    }
}

impl Rules {
    /// Returns the source that gives a pod its role. `account` is `None` if the service account is not known (yet).
    pub fn naming<'a>(&'a self, pod: &'a Pod, account: Option<&'a ServiceAccount>) -> Naming<'a> {
        if let Some(written) = pod.annotation(&self.keys.role) {
            return Naming::Pod { written };
        }
        if self.asks_accounts_of(pod) {
            let Some(account) = account else {
                return Naming::UnknownAccount;
            };
            if let Some(written) = account.annotation(ROLE_KEY) {
                return Naming::Account { account, written };
            }
        }
        // hostNetwork pods keep a node alive and must work without the agent, so the default role does not apply to
        // them.
        match self.default_role.as_ref().filter(|_| !pod.host_network) {
            Some(role) => Naming::Default(role),
            None => Naming::NoRole,
        }
    }

    /// Says whether the pod's service account may give it a role. A static pod has no service account: its mirror pod
    /// in the API names one, but the kubelet gives the pod no token of it.
    pub fn asks_accounts_of(&self, pod: &Pod) -> bool {
        self.web_identity && pod.mirror == Mirror::No
    }
}
