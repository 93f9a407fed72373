//! Reads the versions of kube2iam and kiam from image tags, and lists the differences that pods see.

/// A major and a minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// Parses the tag of an image: `0.10.9`, `v3.6`, `v4.0-beta1`, `2.8`, with or without a digest. A tag such as
    /// `latest`, or a digest alone, has no version.
    pub fn of_image(image: &str) -> Option<Self> {
        let without_digest = image.split('@').next()?;
        let (_, name) = without_digest.rsplit_once('/').unwrap_or(("", without_digest));
        let (_, tag) = name.split_once(':')?;
        let tag = tag.strip_prefix('v').unwrap_or(tag);
        let mut numbers = tag.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        // Neither `master-2020` nor a tag that is only a number is a version.
        if !tag.contains('.') && major > 9 {
            return None;
        }
        let minor = numbers.next().and_then(|minor| minor.parse().ok()).unwrap_or(0);
        Some(Self(major, minor))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// The differences that pods see with every version.
pub const FOR_EVERY_POD: [(&str, &str); 2] = [
    (
        "IMDSv1",
        "{of} answered requests without a session token (IMDSv1). Here they get 401 on nodes whose own metadata service \
         requires tokens; metadata.v1: allow answers them",
    ),
    (
        "hostNetwork pods",
        "with {of} they had the node's role, whatever their annotation said, as they share its address. Here one with an \
         annotation gets that role, or none if it is refused",
    ),
];

/// A difference to kube2iam, and to kiam before version 3, which passed on every other path.
pub const PASSED_ALL: (&str, &str) = (
    "the node's metadata",
    "{of} passed on every path but security-credentials, user-data among them. Here pods get a list of harmless paths \
     (deploy/docs/imds.md#the-nodes-metadata); metadata.allowPaths adds to it, but never user-data",
);

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("jtblin/kube2iam:0.10.9", Some(Version(0, 10)))]
    #[case("quay.io:443/uswitch/kiam:v3.6@sha256:0123", Some(Version(3, 6)))]
    #[case("quay.io/uswitch/kiam:v4.0-beta1", Some(Version(4, 0)))]
    #[case("quay.io/uswitch/kiam:v2.2-rc1", Some(Version(2, 2)))]
    #[case("docker.io/bitnami/kiam:4.2.0-debian-11-r10", Some(Version(4, 2)))]
    #[case("kiam:4", Some(Version(4, 0)))]
    #[case("jtblin/kube2iam:latest", None)]
    #[case("jtblin/kube2iam", None)]
    #[case("registry:5000/kube2iam", None)]
    #[case("kube2iam@sha256:4444", None)]
    #[case("kube2iam:20200101", None)]
    fn a_version_is_parsed_from_a_tag(#[case] image: &str, #[case] version: Option<Version>) {
        assert_eq!(Version::of_image(image), version);
    }
}
