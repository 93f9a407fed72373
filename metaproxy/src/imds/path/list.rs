//! Lists the metadata of the node that is passed through. The paths are those of the EC2 user guide, "Instance
//! metadata categories", relative to the version.

use super::is_denied_segment;

/// The value of `--pass-through`: how much of the node's metadata pods see. `--allow-path` adds to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PassThrough {
    /// Metadata that is no secret: instance, network, placement, tags and events
    #[default]
    Default,
    /// Metadata in which SDKs find their region
    Minimal,
    /// No metadata
    None,
}

/// How a path is passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// The answer of the node is passed on unchanged.
    Whole,
    /// The path is a list. Entries that pods may not read are removed.
    Listing,
}

const DEFAULT: [&str; 26] = [
    "dynamic/instance-identity/document",
    "meta-data/ami-id",
    "meta-data/ami-launch-index",
    "meta-data/ami-manifest-path",
    "meta-data/ancestor-ami-ids",
    "meta-data/autoscaling/target-lifecycle-state",
    "meta-data/hostname",
    "meta-data/instance-action",
    "meta-data/instance-id",
    "meta-data/instance-life-cycle",
    "meta-data/instance-type",
    "meta-data/ipv6",
    "meta-data/kernel-id",
    "meta-data/local-hostname",
    "meta-data/local-ipv4",
    "meta-data/mac",
    "meta-data/outpost-arn",
    "meta-data/product-codes",
    "meta-data/profile",
    "meta-data/public-hostname",
    "meta-data/public-ipv4",
    "meta-data/public-ipv6",
    "meta-data/ramdisk-id",
    "meta-data/reservation-id",
    "meta-data/security-groups",
    "meta-data/system",
];

/// Paths that [`PassThrough::Default`] passes through together with everything below them.
const DEFAULT_TREES: [&str; 9] = [
    "meta-data/block-device-mapping",
    "meta-data/elastic-gpus",
    "meta-data/elastic-inference",
    "meta-data/events",
    "meta-data/network/interfaces/macs",
    "meta-data/placement",
    "meta-data/services",
    "meta-data/spot",
    TAGS,
];

/// The paths in which SDKs find their region. The SDKs for Go, Java and .NET read the document, those for JavaScript
/// and Rust the region, and those for Python and C++ the availability zone.
const MINIMAL: [&str; 3] = [
    "dynamic/instance-identity/document",
    "meta-data/placement/availability-zone",
    "meta-data/placement/region",
];

/// The tags of the instance. They exist if its owner allows them in the metadata service (`InstanceMetadataTags`).
/// The names below this path are keys that the owner chose, so `iam` is a tag there.
pub(super) const TAGS: &str = "meta-data/tags/instance";

/// Lists that contain a secret. Their entries are filtered even if a pattern matches the list.
const ABOVE_SECRETS: [&str; 3] = ["", "meta-data", "dynamic/instance-identity"];

impl PassThrough {
    /// Returns how a path is passed through; `None` if it is not. The path begins after the version, and has no slash
    /// at its beginning or end.
    pub(super) fn reading(self, path: &str) -> Option<Reading> {
        let (names, trees): (&[&str], &[&str]) = match self {
            Self::Default => (&DEFAULT, &DEFAULT_TREES),
            Self::Minimal => (&MINIMAL, &[]),
            Self::None => (&[], &[]),
        };
        if names.contains(&path) || trees.iter().any(|tree| is_within(path, tree)) {
            return Some(Reading::Whole);
        }
        let mut all = names.iter().chain(trees);
        all.any(|listed| path.is_empty() || is_within(listed, path))
            .then_some(Reading::Listing)
    }
}

/// Returns how a path that `--allow-path` allows is passed through.
pub(super) fn reading_of_allowed(path: &str) -> Reading {
    if ABOVE_SECRETS.contains(&path) {
        Reading::Listing
    } else {
        Reading::Whole
    }
}

/// Returns whether a path (after the version) is one of the instance tags. The names of tags are not checked.
pub(super) fn is_of_tags(path: &[&str]) -> bool {
    matches!(path, ["meta-data", "tags", "instance", ..])
}

/// Returns whether a path (after the version) is never passed through.
pub(super) fn is_secret(path: &[&str]) -> bool {
    !is_of_tags(path) && path.iter().copied().any(is_denied_segment)
}

fn is_within(path: &str, tree: &str) -> bool {
    let below = path.strip_prefix(tree);
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}
