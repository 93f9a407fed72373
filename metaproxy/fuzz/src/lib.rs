//! Defines the fuzz targets. Every input from others must be answered or refused, and forbidden input must not be let
//! through. A target panics if this does not hold.
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a target panics where what it asserts does not hold"
)]

mod head;
pub mod server;

use std::path::Path;
use std::sync::LazyLock;

use metaproxy::cgroups::Naming;
use metaproxy::imds::path::{PassThrough, Paths, Route};
use metaproxy::pods::manifests::parse;
use metaproxy::roles::WrittenRole;
use metaproxy::roles::policy::{AllowedRolesStyle, Candidate, Letters, PermittedMatch, Policy};
use metaproxy_common::packet::{Bytes, LinkLayer, match_packet};
use metaproxy_common::target::Targets;

/// A fuzz target, which reads one input.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("path", path),
    ("head", head::head),
    ("cgroup", cgroup),
    ("roles", roles),
    ("manifests", manifests),
    ("packet", packet),
];

/// Checks paths of requests: a path that is passed on names no secret, in any spelling.
pub fn path(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else {
        return;
    };
    static PATHS: LazyLock<Paths> =
        LazyLock::new(|| Paths::new(PassThrough::Default, &["meta-data/.*".to_owned()]).unwrap());
    if let Route::Node(path) = PATHS.classify(target) {
        let text = path.as_str();
        // The part below this path is the key of a tag, which may be any text.
        let after_version = text.splitn(3, '/').nth(2).unwrap_or_default();
        let is_tag = after_version.starts_with("meta-data/tags/instance/");
        let lower = if is_tag {
            String::new()
        } else {
            text.to_ascii_lowercase()
        };
        for never in [
            "iam",
            "identity-credentials",
            "user-data",
            "public-keys",
            "managed-ssh-keys",
            "pkcs7",
            "rsa2048",
            "signature",
        ] {
            let is_part = lower.split('/').any(|part| part == never);
            assert!(!is_part, "{target:?} is passed on as {text:?}");
        }
        assert!(text.starts_with('/') && text.is_ascii(), "{text:?}");
        let escape = if is_tag { "%5C" } else { "%" };
        for part in ["//", "/./", "/../", escape, "%0", "\\", "?", "#", "\r", "\n", " "] {
            assert!(!text.contains(part), "{target:?} is passed on as {text:?}");
        }
        assert_eq!(
            PATHS.classify(text),
            Route::Node(path.clone()),
            "normal form is what it is"
        );
    }
}

/// Checks cgroup paths: a pod's UID is that of the outermost component that names one.
pub fn cgroup(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for pods in [
        "/kubepods",
        "/kubepods.slice",
        "/kubelet.slice/kubelet-kubepods.slice",
    ] {
        let naming = Naming::of(Path::new(pods));
        let below = Path::new(text);
        let Some(uid) = naming.pod_of(below) else { continue };
        let plain = |text: &str| text.replace('_', "-");
        assert!(plain(text).contains(&plain(uid.as_str())), "{text:?} gives {uid}");
        let deeper = below.join("pod11111111-2222-3333-4444-555555555555");
        assert_eq!(naming.pod_of(&deeper), Some(uid), "{text:?}, nested");
    }
}

/// Checks annotations. The first line of the input is a role, and the rest is a policy.
pub fn roles(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (written, policy) = text.split_once('\n').unwrap_or((text, ""));
    let base = "arn:aws:iam::123456789012:role/".parse().unwrap();
    let role = written.parse::<WrittenRole>();
    let resolved = role
        .ok()
        .and_then(|role| role.resolve(Some(&base)).ok().flatten());
    let policies: Vec<Policy> = [
        Policy::permitted(policy, PermittedMatch::Anchored, Letters::AsWritten).ok(),
        Policy::permitted(policy, PermittedMatch::Search, Letters::AsWritten).ok(),
        Policy::allowed_roles(policy, AllowedRolesStyle::Glob, Letters::AsWritten).ok(),
        Policy::allowed_roles(policy, AllowedRolesStyle::Regexp, Letters::AsWritten).ok(),
    ]
    .into_iter()
    .flatten()
    .collect();
    let Some(role) = resolved else { return };
    assert!(role.as_str().starts_with("arn:aws"), "{role}");
    assert!(role.account().len() == 12 && role.account().bytes().all(|byte| byte.is_ascii_digit()));
    assert!(!role.name().is_empty() && !role.name().contains('/'), "{role}");
    assert!(!role.as_str().contains(char::is_whitespace), "{role}");
    let candidate = Candidate::new(&role, written, Some(&base));
    for policy in &policies {
        if let Some(entry) = policy.allows(&candidate) {
            assert!(policy.entries().iter().any(|own| own == entry), "{entry:?}");
        }
    }
}

/// Checks manifests: any file is read or refused.
pub fn manifests(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let _ = parse::yaml(text);
    let _ = parse::json(text);
}

struct Packet<'a>(&'a [u8]);

impl Bytes for Packet<'_> {
    fn load<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool {
        let Some(bytes) = self.0.get(at as usize..).and_then(|rest| rest.get(..N)) else {
            return false;
        };
        into.copy_from_slice(bytes);
        true
    }
}

/// Checks packets: a dropped packet is addressed to the metadata service, and its headers are at the reported
/// offsets.
pub fn packet(data: &[u8]) {
    for link_layer in [LinkLayer::Ethernet, LinkLayer::Ip] {
        let aim = match_packet(&Packet(data), link_layer, &Targets::IMDS);
        if !aim.hit {
            continue;
        }
        let at = aim.ip as usize + if aim.is_v6 { 24 } else { 16 };
        let v6 = [0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54];
        let want: &[u8] = if aim.is_v6 { &v6 } else { &[169, 254, 169, 254] };
        assert_eq!(&data[at..at + want.len()], want);
        if aim.tcp != 0 {
            let port = aim.tcp as usize + 2;
            assert_eq!(data[port..port + 2], [0, 80]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// The inputs are seeds, and inputs for which a target once failed.
    #[test]
    fn committed_inputs_pass() {
        for (name, target) in TARGETS {
            let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
            let mut inputs = 0;
            for entry in fs::read_dir(&dir).unwrap() {
                target(&fs::read(entry.unwrap().path()).unwrap());
                inputs += 1;
            }
            assert!(inputs >= 3, "{name} has seeds");
        }
    }
}
