//! Derives the parameters of a session, beside its role, from the pod and the configuration.

use super::decision::AnnotationKeys;
use super::reason::Reason;
use super::session_name::SessionName;
use super::session_tags::{SessionTags, TagRules};
use super::web_identity::{Principal, WebIdentity};
use crate::pods::{Pod, PodUid};

/// `--session-scope`: which pods share a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SessionScope {
    /// None: each pod has a session of its own
    #[default]
    Pod,
    /// Pods of this node with the same role, external id, session name annotation and tags
    Role,
}

/// The configuration that shapes sessions.
#[derive(Clone, Debug, Default)]
pub struct SessionRules {
    /// Which pods share a session.
    pub scope: SessionScope,
    /// Which tags sessions have.
    pub tags: TagRules,
    /// The name of this node, if it has one.
    pub node: Option<String>,
}

/// The parameters of a session, without its role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionShape {
    /// The `RoleSessionName`.
    pub name: SessionName,
    /// The `ExternalId`.
    pub external_id: Option<String>,
    /// The session tags.
    pub tags: SessionTags,
    /// The pod, if each pod has a session of its own.
    pub pod: Option<PodUid>,
    /// The identity that assumes the role.
    pub principal: Principal,
}

impl SessionRules {
    /// Returns the parameters for a pod whose role is assumed by the node's role.
    ///
    /// # Errors
    /// If an annotation of the pod is malformed, or a tag would have a value that STS refuses.
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

    /// Returns the parameters for a pod that presents a token of its own. Such a session is never shared. It has no
    /// tags and no external id: AssumeRoleWithWebIdentity takes tags from the token, and has no ExternalId.
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

    /// Returns the name of sessions that belong to no single pod.
    pub fn of_node(&self) -> SessionName {
        match &self.node {
            Some(node) => SessionName::cleaned(&format!("metaproxy.{node}")),
            None => SessionName::cleaned("metaproxy"),
        }
    }
}

/// Reads the external id. STS accepts 2 to 1224 of `[\w+=,.@:\/-]`. A malformed one is refused and never cleaned,
/// since another id may be that of another party.
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
