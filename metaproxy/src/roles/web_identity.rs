//! Reads the annotations of IRSA on service accounts ("IAM roles for service accounts", EKS user guide; the keys are
//! those of its admission webhook, amazon-eks-pod-identity-webhook).

use super::reason::Reason;
use crate::pods::{Pod, PodUid, ServiceAccount};

/// Service account annotation with the role.
pub const ROLE_KEY: &str = "eks.amazonaws.com/role-arn";
/// Service account annotation with the audience of its tokens.
pub const AUDIENCE_KEY: &str = "eks.amazonaws.com/audience";
/// Service account annotation: `true` for the region's STS (the default), `false` for the global one.
pub const REGIONAL_KEY: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// All annotations of service accounts that are read.
pub const KEYS: [&str; 3] = [ROLE_KEY, AUDIENCE_KEY, REGIONAL_KEY];

/// The audience of IRSA's identity providers, unless the annotation sets another one.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// The maximum length of an audience. IAM accepts client ids of up to 255 characters (CreateOpenIDConnectProvider).
const MAX_AUDIENCE: usize = 255;

/// The identity that assumes a role.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// The node's role, or that of `--assume-role-arn`.
    Node,
    /// The pod's service account, with a token that is bound to the pod.
    ServiceAccount(Box<WebIdentity>),
}

/// The parameters of a service account's token, and the STS that it is presented to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebIdentity {
    /// The namespace of the pod and of its service account.
    pub namespace: String,
    /// The service account's name.
    pub service_account: String,
    /// The name of the pod that the token is bound to.
    pub pod: String,
    /// The pod's `metadata.uid`.
    pub uid: PodUid,
    /// The token's audience (`aud`).
    pub audience: String,
    /// The STS that the token is presented to.
    pub endpoint: StsEndpoint,
}

/// The STS that a service account's token is presented to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StsEndpoint {
    /// The STS of the agent's region.
    #[default]
    Regional,
    /// `sts.amazonaws.com`, in partitions that have it.
    Global,
}

impl WebIdentity {
    /// Returns the identity of a pod.
    ///
    /// # Errors
    /// If an annotation of the service account is malformed.
    pub(super) fn of(pod: &Pod, account: &ServiceAccount) -> Result<Self, Reason> {
        let bad = |key: &str, problem: &str| Reason::MalformedAnnotation {
            object: format!("service account {account}"),
            key: key.to_owned(),
            problem: problem.to_owned(),
        };
        let audience = account.annotation(AUDIENCE_KEY).unwrap_or(DEFAULT_AUDIENCE);
        if audience.len() > MAX_AUDIENCE || !audience.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad(
                AUDIENCE_KEY,
                "an audience is up to 255 visible ASCII characters, without spaces",
            ));
        }
        let endpoint = match account.annotation(REGIONAL_KEY) {
            None | Some("true") => StsEndpoint::Regional,
            Some("false") => StsEndpoint::Global,
            Some(_) => return Err(bad(REGIONAL_KEY, "it is true or false")),
        };
        Ok(Self {
            namespace: pod.namespace.clone(),
            service_account: account.name.clone(),
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            audience: audience.to_owned(),
            endpoint,
        })
    }

    /// Returns `namespace/name` of the service account.
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}
