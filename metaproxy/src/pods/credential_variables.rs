//! The environment variables with which SDKs use other credentials than those of the metadata service. EKS Pod
//! Identity, IRSA and ECS set them. An SDK that finds one does not fall back to the metadata service, even if it gets
//! no credentials from the variable (docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html).

use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// A variable with which SDKs use other credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CredentialVariable {
    /// `AWS_ACCESS_KEY_ID`, the key of a user.
    AwsAccessKeyId,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE`, which IRSA sets together with `AWS_ROLE_ARN`.
    AwsWebIdentityTokenFile,
    /// `AWS_CONTAINER_CREDENTIALS_FULL_URI`, which EKS Pod Identity and similar agents set.
    AwsContainerCredentialsFullUri,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`, which ECS sets.
    AwsContainerCredentialsRelativeUri,
}

impl CredentialVariable {
    const ALL: [Self; 4] = [
        Self::AwsAccessKeyId,
        Self::AwsWebIdentityTokenFile,
        Self::AwsContainerCredentialsFullUri,
        Self::AwsContainerCredentialsRelativeUri,
    ];

    /// Returns the variable's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::AwsAccessKeyId => "AWS_ACCESS_KEY_ID",
            Self::AwsWebIdentityTokenFile => "AWS_WEB_IDENTITY_TOKEN_FILE",
            Self::AwsContainerCredentialsFullUri => "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            Self::AwsContainerCredentialsRelativeUri => "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        }
    }

    /// Returns the software or practice that sets it.
    pub fn set_by(self) -> &'static str {
        match self {
            Self::AwsAccessKeyId => "static keys",
            Self::AwsWebIdentityTokenFile => "IRSA",
            Self::AwsContainerCredentialsFullUri => "EKS Pod Identity",
            Self::AwsContainerCredentialsRelativeUri => "ECS",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }
}

/// Reads a container's `env` and keeps only these variables, without their values. `null` counts as an empty list.
///
/// # Errors
/// If it is not a list of variables.
pub fn deserialize_env<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<CredentialVariable>, D::Error> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        name: String,
    }
    struct Entries;
    impl<'de> Visitor<'de> for Entries {
        type Value = Vec<CredentialVariable>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of variables")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(Entry { name }) = entries.next_element()? {
                found.extend(CredentialVariable::named(&name));
            }
            Ok(found)
        }

        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok(Vec::new())
        }
    }
    deserializer.deserialize_any(Entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::Pod;
    use serde_json::json;

    #[test]
    fn variables_of_every_container_are_seen_and_no_value_is_kept() {
        let env = |name: &str| json!([{ "name": "OTHER" }, { "name": name, "value": "hidden" }]);
        let pod = json!({
            "metadata": { "name": "web", "uid": "u", "labels": { "iam.amazonaws.com/role": "app", "app": "web" } },
            "spec": {
                "initContainers": [{ "env": env("AWS_WEB_IDENTITY_TOKEN_FILE") }],
                "containers": [
                    { "env": env("AWS_CONTAINER_CREDENTIALS_FULL_URI") }, { "env": null }, {},
                    { "env": env("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") },
                    { "env": env("AWS_ACCESS_KEY_ID") },
                ],
            },
        });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        assert_eq!(
            pod.other_credentials.iter().copied().collect::<Vec<_>>(),
            CredentialVariable::ALL
        );
        assert_eq!(pod.labels.len(), 1, "only those that could be meant");
        let written = serde_json::to_string(&pod).unwrap();
        assert!(
            written.contains("\"AWS_WEB_IDENTITY_TOKEN_FILE\"") && !written.contains("hidden"),
            "{written}"
        );
    }
}
