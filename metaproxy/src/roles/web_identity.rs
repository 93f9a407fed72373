//! Roles of service accounts, by the annotations of IRSA ("IAM roles for service accounts", EKS user guide; the keys are
//! those of its admission webhook, amazon-eks-pod-identity-webhook).

use super::reason::Reason;
use crate::pods::{Pod, PodUid, ServiceAccount};

/// Service account: the role.
pub const ROLE_KEY: &str = "eks.amazonaws.com/role-arn";
/// Service account: the audience of its tokens.
pub const AUDIENCE_KEY: &str = "eks.amazonaws.com/audience";
/// Service account: `true` for the region's STS (the default), `false` for the global one.
pub const REGIONAL_KEY: &str = "eks.amazonaws.com/sts-regional-endpoints";

/// All that are read.
pub const KEYS: [&str; 3] = [ROLE_KEY, AUDIENCE_KEY, REGIONAL_KEY];

/// What an identity provider for IRSA expects where nothing else is said.
const DEFAULT_AUDIENCE: &str = "sts.amazonaws.com";

/// Longest audience that is asked for; IAM knows client ids of up to 255 characters.
const MAX_AUDIENCE: usize = 255;

/// As whom a role is assumed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Principal {
    /// The node, or the role of `--assume-role-arn`.
    Node,
    /// The pod's service account, by a token that is bound to the pod.
    ServiceAccount(Box<WebIdentity>),
}

/// Everything that shapes a service account's token, and where it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WebIdentity {
    /// The namespace of pod and service account.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: String,
    /// Its `metadata.uid`.
    pub uid: PodUid,
    /// `aud`
    pub audience: String,
    /// Which STS is asked.
    pub endpoint: StsEndpoint,
}

/// Which STS is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StsEndpoint {
    /// The region's.
    #[default]
    Regional,
    /// `sts.amazonaws.com`, in the partition that has it.
    Global,
}

impl WebIdentity {
    /// The identity of a pod.
    ///
    /// # Errors
    /// Where an annotation of the service account can't be used.
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
                "an audience is up to 255 visible ASCII characters, without blanks",
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

    /// `namespace/name` of the service account.
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}
