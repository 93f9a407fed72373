//! The audit log: one line for each session that is issued, by which CloudTrail's entries lead back to pods.

use tracing::info;

/// The target of the audit log's lines, which have a filter of their own.
pub const AUDIT_TARGET: &str = "metaproxy::audit";

/// The fields of one line. None of them is secret: an access key id is what CloudTrail shows.
#[derive(Debug, PartialEq, Eq)]
pub struct SessionIssued {
    /// The pod's name; `namespace/name` of each pod if several share the session.
    pub pod: String,
    /// The namespace, or namespaces, of the pods.
    pub namespace: String,
    /// The service account, or service accounts, of the pods.
    pub service_account: String,
    /// ARN of the role.
    pub role: String,
    /// `RoleSessionName`
    pub session_name: String,
    /// `AccessKeyId`
    pub access_key_id: String,
    /// When the session expires, as `YYYY-MM-DDTHH:MM:SSZ`.
    pub expires: String,
    /// Seconds until then.
    pub life: u64,
}

impl SessionIssued {
    /// Writes the line.
    pub fn log(&self) {
        let Self {
            pod,
            namespace,
            service_account,
            role,
            session_name,
            access_key_id,
            expires,
            life,
        } = self;
        info!(
            target: AUDIT_TARGET,
            pod, namespace, service_account, role, session_name, access_key_id, expires, life, "audit: session issued"
        );
    }
}
