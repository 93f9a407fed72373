//! The audit log, which has one line for each issued session. The lines connect CloudTrail's entries to pods.

use tracing::info;

/// The tracing target of the audit log's lines. The log filter treats it separately.
pub const AUDIT_TARGET: &str = "metaproxy::audit";

/// The fields of one line. None of them is secret: CloudTrail shows the access key id too.
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
    /// The time at which the session expires, as `YYYY-MM-DDTHH:MM:SSZ`.
    pub expires: String,
    /// Seconds until the session expires.
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
