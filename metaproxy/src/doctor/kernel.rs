//! Checks the kernel, the capabilities of this process and the cgroups.

use std::fs;
use std::path::{Path, PathBuf};

use metaproxy_common::handshake::MAX_CGROUP_ID;
use procfs::process::Process;

use super::{Examination, Finding, bpf_conflicts, hooks};
use crate::admin::client;
use crate::cgroups::{CgroupError, Locator, OwnCgroup, PodsCgroup};
use crate::intercept::kernel;

/// The capabilities of the agent and their purpose (linux/capability.h; `CAP_BPF` and `CAP_PERFMON` since Linux 5.8).
const CAPABILITIES: [(u32, &str, &str); 4] = [
    (39, "BPF", "to load the programs"),
    (38, "PERFMON", "for the verifier to take their pointers"),
    (12, "NET_ADMIN", "to attach them"),
    (2, "DAC_READ_SEARCH", "to find a pod by its cgroup"),
];

const SYS_ADMIN: u32 = 21;

pub(super) fn examine(examination: &Examination) -> Vec<Finding> {
    let mut findings = vec![version()];
    let status = Process::myself().and_then(|process| process.status());
    let missing = missing_capabilities(status.map_or(0, |status| status.capeff));
    findings.push(capabilities(&missing));
    let (cgroup, pods) = pods_cgroup(examination);
    findings.push(cgroup);
    let Some(place) = &pods else {
        return findings;
    };
    findings.push(cgroup_ids(place));
    findings.extend(own_cgroup(&place.root));
    findings.extend(bpf_conflicts::examine(&place.dir, &place.root));
    if missing.is_empty() {
        findings.extend(hooks::examine(&place.dir, &examination.runtime_dir));
    }
    findings
}

fn version() -> Finding {
    const CHECK: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    match kernel::check_version() {
        Ok(()) => Finding::ok(CHECK, format!("Linux {}", release.trim())),
        Err(error) => Finding::problem(CHECK, error.to_string(), "Linux 5.10 or newer is needed"),
    }
}

/// Returns those of [`CAPABILITIES`] that are not in the mask of effective capabilities.
fn missing_capabilities(effective: u64) -> Vec<(&'static str, &'static str)> {
    let has = |bit: u32| effective >> bit & 1 == 1;
    CAPABILITIES
        .iter()
        // CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON, which were split off from it.
        .filter(|(bit, ..)| !(has(*bit) || *bit >= 38 && has(SYS_ADMIN)))
        .map(|(_, name, why)| (*name, *why))
        .collect()
}

fn capabilities(missing: &[(&str, &str)]) -> Finding {
    const CHECK: &str = "capabilities";
    if missing.is_empty() {
        let names: Vec<&str> = CAPABILITIES.iter().map(|(_, name, _)| *name).collect();
        return Finding::ok(CHECK, format!("{} are there", names.join(", ")));
    }
    let lacking: Vec<String> = missing
        .iter()
        .map(|(name, why)| format!("{name} ({why})"))
        .collect();
    Finding::problem(
        CHECK,
        format!("this process lacks {}", lacking.join(", ")),
        "run as root on the node, or in the agent's own container, which has them by the chart's securityContext",
    )
}

/// The cgroup to which programs are attached on trial.
struct TrialCgroup {
    /// The pods' cgroup, or the mount if the pods' cgroup does not exist.
    dir: PathBuf,
    root: PathBuf,
}

fn pods_cgroup(examination: &Examination) -> (Finding, Option<TrialCgroup>) {
    const CHECK: &str = "cgroup";
    let problem = |error: CgroupError| Finding::problem(CHECK, error.to_string(), advice(&error));
    let named = examination.cgroup.clone().or_else(|| of_agent(examination));
    let locator = match Locator::new(examination.cgroup_root.as_deref(), named.as_deref()) {
        Ok(locator) => locator,
        Err(error) => return (problem(error), None),
    };
    let place = |dir: &Path| {
        // The same tree may be mounted at several paths.
        let root = locator.roots().iter().find(|root| dir.starts_with(root));
        Some(TrialCgroup {
            dir: dir.to_owned(),
            root: root.cloned().unwrap_or_else(|| dir.to_owned()),
        })
    };
    let check = |pods: PodsCgroup| pods.check_lookup().map(|()| pods);
    match locator.locate() {
        Ok(Some(pods)) => match check(pods) {
            Ok(pods) => (
                Finding::ok(CHECK, format!("the pods' cgroup is {}", pods.path().display())),
                place(pods.path()),
            ),
            Err(error) => (
                Finding::problem(
                    CHECK,
                    format!("pods cannot be looked up by their cgroups: {error}"),
                    "mount the host's cgroup v2 tree into this container, and give it DAC_READ_SEARCH",
                ),
                None,
            ),
        },
        Ok(None) => match locator.check_v1(Path::new("/sys/fs/cgroup")) {
            Ok(()) => (
                Finding::warning(
                    CHECK,
                    format!("there is no pods' cgroup ({})", locator.describe()),
                    "it exists once the kubelet runs; if the kubelet has another --cgroup-root, name it with --cgroup DIR",
                ),
                place(
                    locator
                        .roots()
                        .first()
                        .map_or(Path::new("/sys/fs/cgroup"), PathBuf::as_path),
                ),
            ),
            Err(error) => (problem(error), None),
        },
        Err(error) => (problem(error), None),
    }
}

/// Returns the id of the pods' cgroup, if it exists.
pub(super) fn pods_cgroup_id(examination: &Examination) -> Option<u64> {
    let named = examination.cgroup.clone().or_else(|| of_agent(examination));
    let locator = Locator::new(examination.cgroup_root.as_deref(), named.as_deref()).ok()?;
    Some(locator.locate().ok()??.id())
}

/// Returns the cgroup that a running agent has found, if this process sees it at the same path. Returns `None` if a
/// flag names the cgroup root.
fn of_agent(examination: &Examination) -> Option<PathBuf> {
    let status = client::status(&examination.runtime_dir).ok()?;
    let found = PathBuf::from(status.cgroup?);
    (examination.cgroup_root.is_none() && found.is_dir()).then_some(found)
}

/// Checks that ids of cgroups fit into the caller's option. A pod's cgroup is created after the pods' cgroup and has
/// a greater id.
fn cgroup_ids(place: &TrialCgroup) -> Finding {
    use std::os::unix::fs::MetadataExt as _;
    const CHECK: &str = "cgroup ids";
    let id = fs::metadata(&place.dir).map_or(0, |dir| dir.ino());
    if id > MAX_CGROUP_ID {
        return Finding::problem(
            CHECK,
            format!(
                "the cgroup {} has the id {id}, and callers are carried in 40 bits",
                place.dir.display()
            ),
            "boot the node again: the kernel has made more than a million million cgroups and files of cgroups since it started",
        );
    }
    Finding::ok(CHECK, "they fit into the 40 bits in which a caller is carried")
}

/// Checks that no program at the cgroup of this process prevents the agent's listener program from being attached. If
/// this command runs in the agent's container, this is the agent's cgroup.
fn own_cgroup(root: &Path) -> Option<Finding> {
    const CHECK: &str = "own cgroup";
    match OwnCgroup::find(&[root.to_owned()]) {
        Ok(own) if own.path() == root => None,
        Ok(own) => bpf_conflicts::keeping_out(own.path(), root),
        Err(error) => Some(Finding::warning(
            CHECK,
            error.to_string(),
            "the agent attaches what verifies callers there; without it it does not start",
        )),
    }
}

fn advice(error: &CgroupError) -> &'static str {
    match error {
        CgroupError::NoCgroup2 => {
            "mount it (`mount -t cgroup2 none /sys/fs/cgroup/unified`) or boot with systemd.unified_cgroup_hierarchy=1; in a \
             container, mount the host's /sys/fs/cgroup"
        }
        CgroupError::PodsInV1(_) => {
            "boot with systemd.unified_cgroup_hierarchy=1, so that pods are in cgroup v2"
        }
        _ => "see --cgroup and --cgroup-root",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_capabilities_are_named() {
        assert!(missing_capabilities(0x1ff_ffff_ffff).is_empty());
        // The capabilities are those of the hardened chart.
        assert!(missing_capabilities(0xc0_0000_1004).is_empty());
        let names = |effective| -> Vec<&str> {
            let missing = missing_capabilities(effective).into_iter();
            missing.map(|(name, _)| name).collect()
        };
        assert_eq!(names(0x1000), ["BPF", "PERFMON", "DAC_READ_SEARCH"]);
        assert_eq!(names(0x20_0000), ["NET_ADMIN", "DAC_READ_SEARCH"]);
        assert_eq!(names(0).len(), 4);
    }
}
