//! Formats requests for logs. A path is text of the client, and a mistaken client may put a session token or a
//! credential into it. So logs show only words of the metadata service's own paths.

use std::fmt;

use hyper::Method;

use super::path::is_version;

/// The maximum number of segments of a path that are shown. The longest path of EC2 has eight (that of a network
/// interface).
const MAX_SEGMENTS: usize = 10;

/// Segments of paths of EC2's metadata service ("Instance metadata categories", EC2 user guide) that say nothing
/// about a client. Names of roles and tags, addresses and ids are not among them.
const METADATA_WORDS: [&str; 65] = [
    "ami-id",
    "ami-launch-index",
    "ami-manifest-path",
    "ancestor-ami-ids",
    "api",
    "associations",
    "autoscaling",
    "availability-zone",
    "availability-zone-id",
    "block-device-mapping",
    "document",
    "domain",
    "dynamic",
    "ec2",
    "elastic-gpus",
    "elastic-inference",
    "events",
    "hostname",
    "iam",
    "identity-credentials",
    "info",
    "instance",
    "instance-action",
    "instance-id",
    "instance-identity",
    "instance-life-cycle",
    "instance-type",
    "interfaces",
    "ipv6",
    "kernel-id",
    "local-hostname",
    "local-ipv4",
    "mac",
    "macs",
    "maintenance",
    "managed-ssh-keys",
    "meta-data",
    "network",
    "openssh-key",
    "outpost-arn",
    "partition",
    "pkcs7",
    "placement",
    "product-codes",
    "profile",
    "public-hostname",
    "public-ipv4",
    "public-ipv6",
    "public-keys",
    "ramdisk-id",
    "region",
    "reservation-id",
    "rsa2048",
    "security-credentials",
    "security-credentials-extended",
    "security-groups",
    "services",
    "signature",
    "spot",
    "system",
    "tags",
    "target-lifecycle-state",
    "termination-time",
    "token",
    "user-data",
];

/// A path of a request for logs, without its query. `…` stands for each segment that is not a word of the metadata
/// service.
pub struct LoggedPath<'a>(pub &'a str);

impl fmt::Display for LoggedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.split(['?', '#']).next().unwrap_or_default();
        for (index, segment) in path.split('/').enumerate() {
            if index > 0 {
                f.write_str("/")?;
            }
            // Index 0 is the text before the first slash.
            if index > MAX_SEGMENTS {
                return f.write_str("…");
            }
            let is_known = segment.is_empty() || METADATA_WORDS.contains(&segment) || is_version(segment);
            f.write_str(if is_known { segment } else { "…" })?;
        }
        Ok(())
    }
}

/// Returns the name of an HTTP method, and `…` for a method that the client made up.
pub fn logged_method(method: &Method) -> &str {
    match *method {
        Method::GET
        | Method::HEAD
        | Method::PUT
        | Method::POST
        | Method::DELETE
        | Method::OPTIONS
        | Method::PATCH
        | Method::TRACE
        | Method::CONNECT => method.as_str(),
        _ => "…",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    #[rstest]
    #[case("/latest/api/token", "/latest/api/token")]
    #[case(
        "/latest/meta-data/iam/security-credentials/",
        "/latest/meta-data/iam/security-credentials/"
    )]
    #[case(
        "/latest/meta-data/iam/security-credentials/app",
        "/latest/meta-data/iam/security-credentials/…"
    )]
    #[case(
        "/2021-07-15/dynamic/instance-identity/document",
        "/2021-07-15/dynamic/instance-identity/document"
    )]
    #[case("/latest/api/token/AQAEAKiG==", "/latest/api/token/…")]
    #[case("/AQAEAKiG==", "/…")]
    #[case("/latest/meta-data/?token=AQAEAKiG==", "/latest/meta-data/")]
    #[case("/latest/%6deta-data/", "/latest/…/")]
    #[case("*", "…")]
    #[case("", "")]
    #[case("/a/b/c/d/e/f/g/h/i/j/k/l/m", "/…/…/…/…/…/…/…/…/…/…/…")]
    fn only_words_of_the_metadata_service_are_shown(#[case] path: &str, #[case] want: &str) {
        assert_eq!(LoggedPath(path).to_string(), want);
    }

    #[test]
    fn an_unknown_method_is_not_shown() {
        assert_eq!(logged_method(&Method::PUT), "PUT");
        assert_eq!(logged_method(&Method::from_bytes(b"AQAEAKiG").unwrap()), "…");
    }

    proptest! {
        #[test]
        fn no_text_of_a_client_is_shown(
            token in "[A-Za-z0-9+/=_-]{20,60}",
            before in "(/(latest|meta-data|iam|api|token)){0,4}",
            after in "(/[a-z]{0,8}){0,3}",
        ) {
            let token = token.replace('/', "_");
            for path in [format!("{before}/{token}{after}"), format!("{before}{after}?{token}")] {
                let shown = LoggedPath(&path).to_string();
                prop_assert!(METADATA_WORDS.contains(&token.as_str()) || !shown.contains(&token), "{}", shown);
            }
        }
    }
}
