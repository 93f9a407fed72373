//! Everything that shapes a session beside its role.

use super::decision::AnnotationKeys;
use super::reason::Reason;
use super::session_name::SessionName;
use super::session_tags::{SessionTags, TagRules};
use super::web_identity::{Principal, WebIdentity};
use crate::pods::{Pod, PodUid};

/// `--session-scope`: who shares a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SessionScope {
    /// Nobody: each pod has its own
    #[default]
    Pod,
    /// Pods of this node with the same role, external id, session name annotation and tags
    Role,
}

/// The configuration that shapes sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionRules {
    /// Who shares one.
    pub scope: SessionScope,
    /// Which tags they have.
    pub tags: TagRules,
    /// This node, where it has a name.
    pub node: Option<String>,
}

/// How a session is made, but for its role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionShape {
    /// `RoleSessionName`
    pub name: SessionName,
    /// `ExternalId`
    pub external_id: Option<String>,
    /// Session tags.
    pub tags: SessionTags,
    /// The pod, where each has a session of its own.
    pub pod: Option<PodUid>,
    /// As whom the role is assumed.
    pub principal: Principal,
}

impl SessionRules {
    /// For a pod.
    ///
    /// # Errors
    /// Where an annotation of the pod can't be used.
    pub fn shape(&self, pod: &Pod, keys: &AnnotationKeys) -> Result<SessionShape, Reason> {
        let own_name = || match self.scope {
            SessionScope::Pod => SessionName::of_pod(&pod.namespace, &pod.name),
            SessionScope::Role => self.of_node(),
        };
        Ok(SessionShape {
            name: pod
                .annotation(&keys.session_name)
                .map_or_else(own_name, SessionName::cleaned),
            external_id: external_id(pod, &keys.external_id)?,
            tags: self.tags.tags(pod, self.node.as_deref())?,
            pod: (self.scope == SessionScope::Pod).then(|| pod.uid.clone()),
            principal: Principal::Node,
        })
    }

    /// For a pod that shows a token of its own. Such a session is never shared; what it may be tagged with stands in the
    /// token, and trust policies ask that, not an external id.
    pub(super) fn web_identity_shape(
        &self,
        pod: &Pod,
        keys: &AnnotationKeys,
        identity: WebIdentity,
    ) -> SessionShape {
        let own_name = || SessionName::of_pod(&pod.namespace, &pod.name);
        SessionShape {
            name: pod
                .annotation(&keys.session_name)
                .map_or_else(own_name, SessionName::cleaned),
            external_id: None,
            tags: SessionTags::default(),
            pod: Some(pod.uid.clone()),
            principal: Principal::ServiceAccount(Box::new(identity)),
        }
    }

    /// The name of sessions that are no single pod's.
    pub fn of_node(&self) -> SessionName {
        match &self.node {
            Some(node) => SessionName::cleaned(&format!("metaproxy.{node}")),
            None => SessionName::cleaned("metaproxy"),
        }
    }
}

/// STS: 2 to 1224 of `[\w+=,.@:\/-]`. Never mended: another id is another party's.
fn external_id(pod: &Pod, key: &str) -> Result<Option<String>, Reason> {
    let Some(id) = pod.annotation(key) else {
        return Ok(None);
    };
    let fits = (2..=1224).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&byte));
    if fits {
        return Ok(Some(id.to_owned()));
    }
    Err(Reason::MalformedAnnotation {
        object: pod.to_string(),
        key: key.to_owned(),
        problem: "an external id is 2 to 1224 letters, digits and characters of _+=,.@:/-".to_owned(),
    })
}
