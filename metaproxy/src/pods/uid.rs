//! The UID of a pod.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The identifier in the name of a pod's cgroup, as the kubelet gives it: the pod's `metadata.uid`, or for a static
/// pod the hash in its annotation `kubernetes.io/config.hash`. It has 1 to 64 characters of `[0-9A-Za-z-]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(Box<str>);

/// The error of a text that is not a pod UID.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is not a pod UID, which has 1 to 64 letters, digits and dashes")]
pub struct InvalidUid(String);

impl FromStr for PodUid {
    type Err = InvalidUid;

    fn from_str(text: &str) -> Result<Self, InvalidUid> {
        let fits = (1..=64).contains(&text.len());
        if fits
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            Ok(Self(text.into()))
        } else {
            Err(InvalidUid(text.chars().take(80).collect()))
        }
    }
}

impl TryFrom<String> for PodUid {
    type Error = InvalidUid;

    fn try_from(text: String) -> Result<Self, InvalidUid> {
        text.parse()
    }
}

impl From<PodUid> for String {
    fn from(uid: PodUid) -> Self {
        uid.0.into()
    }
}

impl PodUid {
    /// Returns the UID as Kubernetes writes it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for PodUid {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PodUid({})", self.0)
    }
}
