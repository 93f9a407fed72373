//! Makes the tags of sessions, by which IAM policies distinguish pods (ABAC).

use std::str::FromStr;

use thiserror::Error;

use super::reason::Reason;
use crate::pods::Pod;

/// The tags that the sessions of this node have, with the values that all of them share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TagRules {
    /// Sessions have no tags.
    #[default]
    Off,
    /// Sessions are tagged with cluster, node, namespace, pod and service account.
    On {
        /// The cluster's name, if it is known.
        cluster: Option<String>,
    },
    /// Sessions have the tags of EKS Pod Identity, so that IAM policies that were written for it apply.
    Eks(EksCluster),
}

/// The tags of one session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SessionTags {
    /// Keys and values, in the order of the keys.
    pub pairs: Vec<(&'static str, String)>,
    /// Whether the roles that the session assumes inherit them (`TransitiveTagKeys`).
    pub are_transitive: bool,
}

impl TagRules {
    /// Returns the tags of a pod's session; `node` is the name of this node.
    ///
    /// # Errors
    /// If STS would refuse a value. It is never cleaned: policies compare tags, and the cleaned value may be that of
    /// another pod.
    pub(super) fn tags(&self, pod: &Pod, node: Option<&str>) -> Result<SessionTags, Reason> {
        let namespace = ("kubernetes-namespace", Some(pod.namespace.as_str()));
        let name = ("kubernetes-pod-name", Some(pod.name.as_str()));
        let account = ("kubernetes-service-account", Some(pod.service_account.as_str()));
        match self {
            Self::Off => Ok(SessionTags::default()),
            Self::On { cluster } => {
                let cluster = ("kubernetes-cluster-name", cluster.as_deref());
                let node = ("kubernetes-node-name", node);
                checked(pod, [cluster, namespace, node, name, account], false)
            }
            // All of them are transitive ("Grant Pods access to AWS resources based on tags", EKS User Guide).
            Self::Eks(cluster) => {
                let arn = ("eks-cluster-arn", Some(cluster.arn.as_str()));
                let cluster = ("eks-cluster-name", Some(cluster.name()));
                let uid = ("kubernetes-pod-uid", Some(pod.uid.as_str()));
                checked(pod, [arn, cluster, namespace, name, uid, account], true)
            }
        }
    }
}

fn checked<const N: usize>(
    pod: &Pod,
    tags: [(&'static str, Option<&str>); N],
    are_transitive: bool,
) -> Result<SessionTags, Reason> {
    let pairs = tags
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .map(|(key, value)| {
            if is_tag_value(value) {
                return Ok((key, value.to_owned()));
            }
            Err(Reason::MalformedTag {
                pod: pod.to_string(),
                key,
                value: value.chars().take(80).collect(),
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(SessionTags {
        pairs,
        are_transitive,
    })
}

/// Says whether STS accepts a tag's value: at most 256 of `[\p{L}\p{Z}\p{N}_.:/=+\-@]` (STS, Tag).
pub fn is_tag_value(value: &str) -> bool {
    value.chars().count() <= 256
        && value
            .chars()
            .all(|c| c.is_alphanumeric() || c == ' ' || "_.:/=+-@".contains(c))
}

/// The ARN of an EKS cluster: `arn:PARTITION:eks:REGION:ACCOUNT:cluster/NAME` (Service Authorization Reference).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EksCluster {
    arn: String,
    /// The index at which the name begins.
    name: usize,
}

/// The error for a text that is not the ARN of a cluster.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error(
    "not the ARN of an EKS cluster, which looks like arn:aws:eks:eu-west-1:123456789012:cluster/NAME; `aws eks \
     describe-cluster --name NAME --query cluster.arn --output text` prints it"
)]
pub struct NotACluster;

impl EksCluster {
    /// Returns the cluster's name, with which the ARN ends.
    pub fn name(&self) -> &str {
        self.arn.get(self.name..).unwrap_or_default()
    }
}

impl FromStr for EksCluster {
    type Err = NotACluster;

    fn from_str(text: &str) -> Result<Self, NotACluster> {
        let is_word = |text: &str| {
            let is_allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            !text.is_empty() && text.bytes().all(is_allowed)
        };
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let &["arn", partition, "eks", region, account, resource] = parts.as_slice() else {
            return Err(NotACluster);
        };
        let name = resource.strip_prefix("cluster/").ok_or(NotACluster)?;
        let is_cluster = partition.starts_with("aws")
            && is_word(partition)
            && is_word(region)
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && is_cluster_name(name)
            && is_tag_value(text);
        if !is_cluster {
            return Err(NotACluster);
        }
        Ok(Self {
            arn: text.to_owned(),
            name: text.len() - name.len(),
        })
    }
}

/// Says whether EKS accepts a cluster's name: 1 to 100 of `[0-9A-Za-z][A-Za-z0-9\-_]*` (`CreateCluster`).
fn is_cluster_name(name: &str) -> bool {
    name.len() <= 100
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("arn:aws:eks:eu-west-1:123456789012:cluster/blue", Some("blue"))]
    #[case("arn:aws-cn:eks:cn-north-1:123456789012:cluster/Blue_2-b", Some("Blue_2-b"))]
    #[case("arn:aws-us-gov:eks:us-gov-west-1:123456789012:cluster/b", Some("b"))]
    #[case("blue", None)]
    #[case("", None)]
    #[case("arn:aws:eks:eu-west-1:123456789012:cluster/", None)]
    #[case("arn:aws:eks:eu-west-1:123456789012:cluster/-blue", None)]
    #[case("arn:aws:eks:eu-west-1:123456789012:cluster/b/c", None)]
    #[case("arn:aws:eks:eu-west-1:123456789012:nodegroup/blue/n/u", None)]
    #[case("arn:aws:eks:eu-west-1:12345678901:cluster/blue", None)]
    #[case("arn:aws:eks::123456789012:cluster/blue", None)]
    #[case("arn:aws:iam::123456789012:role/blue", None)]
    #[case("ARN:aws:eks:eu-west-1:123456789012:cluster/blue", None)]
    #[case("arn:aws:eks:eu-west-1:123456789012:cluster/blue ", None)]
    fn a_clusters_arn_gives_its_name(#[case] arn: &str, #[case] name: Option<&str>) {
        let cluster = arn.parse::<EksCluster>().ok();
        assert_eq!(cluster.as_ref().map(EksCluster::name), name);
    }

    #[test]
    fn a_clusters_name_must_be_one_that_eks_accepts() {
        let arn = |length: usize| {
            format!(
                "arn:aws:eks:eu-west-1:123456789012:cluster/{}",
                "b".repeat(length)
            )
        };
        assert!(arn(100).parse::<EksCluster>().is_ok());
        assert_eq!(arn(101).parse::<EksCluster>(), Err(NotACluster));
    }

    proptest! {
        #[test]
        fn an_accepted_cluster_arn_is_a_valid_tag_value(text in "arn:aws:eks:[a-z0-9-]{0,260}:[0-9]{12}:cluster/.{0,110}") {
            if let Ok(cluster) = text.parse::<EksCluster>() {
                prop_assert!(is_tag_value(&cluster.arn) && is_tag_value(cluster.name()));
                prop_assert!(text.ends_with(cluster.name()));
            }
        }
    }
}
