//! Who names a pod's role. The order of deploy/docs/roles.md, "Role of a pod", is written here and nowhere else: the decision and its
//! explanation both ask here.

use super::reason::RoleSource;
use super::web_identity::ROLE_KEY;
use super::{Rules, WrittenRole};
use crate::pods::{Mirror, Pod, ServiceAccount};

/// Who names a pod's role: the first that does.
#[derive(Clone, Copy, Debug)]
pub enum Naming<'a> {
    /// The pod, by its annotation.
    Pod {
        /// As written.
        written: &'a str,
    },
    /// Its service account, by its annotation.
    Account {
        /// Which.
        account: &'a ServiceAccount,
        /// As written.
        written: &'a str,
    },
    /// Its service account may, and is not known (yet).
    UnknownAccount,
    /// `--default-role`
    Default(&'a WrittenRole),
    /// Nobody.
    Nobody,
}

impl<'a> Naming<'a> {
    /// Where the role is named, and as what; `None` where it is not, or not yet.
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
            Self::UnknownAccount | Self::Nobody => return None,
        })
    }
}

impl Rules {
    /// Who names a pod's role; `account` is `None` where it is not known (yet).
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
        // What keeps a node alive must go on without us: hostNetwork pods have no role that nobody gave them by name.
        match self.default_role.as_ref().filter(|_| !pod.host_network) {
            Some(role) => Naming::Default(role),
            None => Naming::Nobody,
        }
    }

    /// Whether a pod's service account is asked. A static pod has none: the API's copy of it names one that its processes never are.
    pub fn asks_accounts_of(&self, pod: &Pod) -> bool {
        self.web_identity && pod.mirror == Mirror::No
    }
}
