//! Decides which role a pod has, and why: a pure function of the pod, its namespace, its service account and the
//! configuration.

pub mod arn;
mod decision;
mod go_regexp;
mod namespace;
mod naming;
mod own;
mod placeholder;
pub mod policy;
mod reason;
mod session;
pub mod session_name;
mod session_tags;
pub mod web_identity;

pub use arn::{BaseArn, RoleArn, WrittenRole};
#[cfg(test)]
pub(crate) use decision::tests::unasked;
pub use decision::{AnnotationKeys, Decision, Grant, Rules, Subject};
pub(crate) use go_regexp::go_regexp;
pub use namespace::{NamespaceRules, Opinion, PolicyCache, PolicyKind};
pub use naming::Naming;
pub use own::{OwnRole, OwnRoles, Owner, RoleId};
pub use placeholder::placeholder;
pub use reason::{Allowance, AlsoSearched, Reason, ReasonKind, RoleSource};
pub use session::{SessionRules, SessionScope, SessionShape};
pub use session_tags::{EksCluster, NotACluster, SessionTags, TagRules, is_tag_value};
pub use web_identity::{Principal, StsEndpoint, WebIdentity};
