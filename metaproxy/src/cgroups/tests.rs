use super::*;
use crate::pods::PodUid;
use proptest::prelude::*;
use rstest::rstest;

const UID: &str = "0f3c9a52-1d6e-4b7a-9c55-3a2f7f0e8d11";
const UID_: &str = "0f3c9a52_1d6e_4b7a_9c55_3a2f7f0e8d11";
const VICTIM: &str = "11111111-2222-3333-4444-555555555555";
const STATIC: &str = "8f8a9d1e5c3b4a2f8f8a9d1e5c3b4a2f";

fn pod_of(pods: &str, below: &str) -> Option<String> {
    let below = below
        .replace("{U}", UID)
        .replace("{U_}", UID_)
        .replace("{V}", VICTIM)
        .replace("{S}", STATIC);
    Naming::of(Path::new(pods))
        .pod_of(Path::new(&below))
        .map(|uid| uid.to_string())
}

#[rstest]
#[case::cgroupfs_guaranteed("/kubepods", "pod{U}/4d5e", Some(UID))]
#[case::cgroupfs_burstable("/kubepods", "burstable/pod{U}/4d5e", Some(UID))]
#[case::cgroupfs_besteffort("/kubepods", "besteffort/pod{U}/4d5e", Some(UID))]
#[case::the_pod_itself("/kubepods", "besteffort/pod{U}", Some(UID))]
#[case::static_pod("/kubepods", "burstable/pod{S}/4d5e", Some(STATIC))]
#[case::kind_cgroupfs("/kubelet/kubepods", "besteffort/pod{U}/4d5e", Some(UID))]
#[case::containerd(
    "/kubepods.slice",
    "kubepods-burstable.slice/kubepods-burstable-pod{U_}.slice/cri-containerd-4d5e.scope",
    Some(UID)
)]
#[case::crio(
    "/kubepods.slice",
    "kubepods-besteffort.slice/kubepods-besteffort-pod{U_}.slice/crio-4d5e.scope/container",
    Some(UID)
)]
#[case::docker_guaranteed("/kubepods.slice", "kubepods-pod{U_}.slice/docker-4d5e.scope", Some(UID))]
#[case::systemd_static(
    "/kubepods.slice",
    "kubepods-burstable.slice/kubepods-burstable-pod{S}.slice/x",
    Some(STATIC)
)]
#[case::kind_systemd(
    "/kubelet.slice/kubelet-kubepods.slice",
    "kubelet-kubepods-besteffort.slice/kubelet-kubepods-besteffort-pod{U_}.slice/cri-containerd-4d5e.scope",
    Some(UID)
)]
#[case::nested_named_after_a_victim("/kubepods", "burstable/pod{U}/4d5e/pod{V}", Some(UID))]
#[case::nested_deep("/kubepods", "pod{U}/4d5e/burstable/pod{V}/x", Some(UID))]
#[case::nested_systemd(
    "/kubepods.slice",
    "kubepods-pod{U_}.slice/x.scope/kubepods-burstable.slice/kubepods-burstable-podV.slice",
    Some(UID)
)]
#[case::the_pods_cgroup_itself("/kubepods", "", None)]
#[case::a_class_itself("/kubepods", "burstable", None)]
#[case::not_a_class("/kubepods", "other/pod{V}", None)]
#[case::not_a_pod("/kubepods", "burstable/4d5e/pod{V}", None)]
#[case::class_twice("/kubepods", "burstable/burstable/pod{V}", None)]
#[case::wrong_class(
    "/kubepods.slice",
    "kubepods-burstable.slice/kubepods-besteffort-pod{U_}.slice/x",
    None
)]
#[case::wrong_stem("/kubepods.slice", "kubelet-kubepods-pod{U_}.slice/x", None)]
#[case::class_missing("/kubepods.slice", "kubepods-burstable-pod{U_}.slice/x", None)]
#[case::dashes_under_systemd("/kubepods.slice", "kubepods-pod{U}.slice/x", None)]
#[case::empty_uid("/kubepods", "burstable/pod/x", None)]
#[case::odd_characters("/kubepods", "burstable/poda b/x", None)]
#[case::dots("/kubepods", "burstable/pod../x", None)]
#[case::mixed_drivers("/kubepods", "kubepods-pod{U_}.slice/x", None)]
fn the_pod_of_a_cgroup(#[case] pods: &str, #[case] below: &str, #[case] want: Option<&str>) {
    assert_eq!(pod_of(pods, below).as_deref(), want, "{below}");
}

#[rstest]
#[case("/x/kubepods")]
#[case("/x/kubepods.slice")]
#[case("/x/kubelet-kubepods.slice")]
fn the_pod_is_found_from_each_of_its_possible_directories(#[case] pods: &str) {
    let naming = Naming::of(Path::new(pods));
    for uid in [UID, STATIC] {
        let uid: PodUid = uid.parse().unwrap();
        for directory in naming.directories_of(&uid) {
            assert_eq!(
                naming.pod_of(&directory.join("container")).as_ref(),
                Some(&uid),
                "{directory:?}"
            );
        }
    }
}

proptest! {
    /// A container belongs to its pod, whatever cgroups it creates below its own.
    #[test]
    fn nesting_never_changes_the_pod(
        nested in proptest::collection::vec("[a-z0-9._-]{1,12}|pod11111111-2222-3333-4444-555555555555|burstable", 0..6),
        systemd: bool, class in 0..3usize,
    ) {
        let naming = Naming::of(Path::new(if systemd { "/kubepods.slice" } else { "/kubepods" }));
        let uid: PodUid = UID.parse().unwrap();
        let mut path = naming.directories_of(&uid).remove(class);
        path.extend(&nested);
        prop_assert_eq!(naming.pod_of(&path), Some(uid));
    }

    #[test]
    fn no_path_makes_it_panic(path in "\\PC{0,80}", systemd: bool) {
        let naming = Naming::of(Path::new(if systemd { "/kubepods.slice" } else { "/kubepods" }));
        let _ = naming.pod_of(Path::new(&path));
    }
}

const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
31 24 0:27 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw
33 31 0:29 / /sys/fs/cgroup/cpu rw,nosuid shared:11 - cgroup cgroup rw,cpu
34 22 0:28 / /host/my\\040cgroup rw master:3 - cgroup2 cgroup2 rw
";

#[test]
fn cgroup2_mounts_are_read_from_mountinfo() {
    let mounts = cgroup2_mounts(MOUNTINFO);
    assert_eq!(
        mounts,
        [
            PathBuf::from("/host/my cgroup"),
            PathBuf::from("/sys/fs/cgroup/unified")
        ]
    );
    assert!(cgroup2_mounts("").is_empty());
}

#[rstest]
#[case::kubeadm("kubepods.slice", Some("kubepods.slice"))]
#[case::cgroupfs("kubepods", Some("kubepods"))]
#[case::kind(
    "kubelet.slice/kubelet-kubepods.slice",
    Some("kubelet.slice/kubelet-kubepods.slice")
)]
#[case::kind_cgroupfs("kubelet/kubepods", Some("kubelet/kubepods"))]
#[case::kubelet_cgroup_root("mine.slice/mine-kubepods.slice", Some("mine.slice/mine-kubepods.slice"))]
#[case::in_a_service("system.slice/kubepods", None)]
#[case::too_deep("a/b/kubepods", None)]
#[case::similar("kubepods2", None)]
fn the_pods_cgroup_is_found_without_a_flag(#[case] made: &str, #[case] want: Option<&str>) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join(made)).unwrap();
    fs::create_dir_all(root.path().join("system.slice/foo.service")).unwrap();
    let locator = Locator {
        roots: vec![root.path().to_owned()],
        explicit: None,
    };
    let found = locator.locate().unwrap();
    assert_eq!(
        found.map(|pods| pods.path().to_owned()),
        want.map(|name| root.path().join(name))
    );
}

#[test]
fn two_candidates_are_an_error_that_names_both() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("kubepods")).unwrap();
    fs::create_dir_all(root.path().join("kubelet/kubepods")).unwrap();
    let locator = Locator {
        roots: vec![root.path().to_owned()],
        explicit: None,
    };
    let error = locator.locate().unwrap_err().to_string();
    assert!(
        error.contains("kubelet/kubepods, ") && error.contains("--cgroup"),
        "{error}"
    );
}

#[test]
fn a_directory_that_is_not_cgroup2_is_an_error_that_names_the_flag() {
    let dir = tempfile::tempdir().unwrap();
    for (root, cgroup, flag) in [
        (Some(dir.path()), None, "--cgroup-root"),
        (None, Some(dir.path()), "--cgroup "),
    ] {
        let error = Locator::new(root, cgroup).unwrap_err().to_string();
        assert!(error.contains(flag) && error.contains("cgroup v2"), "{error}");
    }
}

/// This is the case on a node on which Cilium has mounted the hierarchy a second time.
#[test]
fn a_cgroup_that_is_found_through_two_mounts_counts_once() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("kubepods.slice")).unwrap();
    let again = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.path(), again.path().join("mount")).unwrap();
    let roots = vec![root.path().to_owned(), again.path().join("mount")];
    let locator = Locator {
        roots,
        explicit: None,
    };
    assert!(locator.locate().unwrap().is_some());
}

#[test]
fn pods_in_cgroup_v1_only_are_refused_with_a_sentence() {
    let v1 = tempfile::tempdir().unwrap();
    let locator = |explicit| Locator {
        roots: vec![v1.path().join("unified")],
        explicit,
    };
    assert!(locator(None).check_v1(v1.path()).is_ok());
    fs::create_dir_all(v1.path().join("cpu/kubepods")).unwrap();
    let error = locator(None).check_v1(v1.path()).unwrap_err().to_string();
    assert!(
        error.contains("cgroup v1") && error.contains("unified_cgroup_hierarchy=1"),
        "{error}"
    );
    assert!(
        locator(Some(v1.path().to_owned())).check_v1(v1.path()).is_ok(),
        "named by flag: waited for"
    );
}

#[rstest]
#[case::class("/c/kubepods/burstable", Some("/c/kubepods"))]
#[case::systemd_class("/c/kubepods.slice/kubepods-besteffort.slice", Some("/c/kubepods.slice"))]
#[case::pod("/c/kubepods/pod1", Some("/c/kubepods"))]
#[case::container(
    "/c/k.slice/k-kubepods.slice/k-kubepods-pod1.slice/x.scope",
    Some("/c/k.slice/k-kubepods.slice")
)]
#[case::all_pods("/c/kubepods", None)]
#[case::of_a_kubelet_in_a_pod("/c/kubepods/pod1/4d5e/kubelet/kubepods", None)]
#[case::of_another_name("/c/host", None)]
fn the_cgroup_of_all_pods_is_found_from_cgroups_below_it(#[case] path: &str, #[case] all: Option<&str>) {
    assert_eq!(naming::all_pods(Path::new(path)), all.map(Path::new));
}

#[rstest]
#[case::class("kubepods/burstable", Some("give /mount/kubepods"))]
#[case::leads_out("x/../../tmp", Some("/mount/x/../../tmp"))]
#[case::leads_nowhere_else("x/.././kubepods", None)]
fn a_cgroup_that_does_not_exist_yet_must_be_that_of_all_pods_below_the_mount(
    #[case] cgroup: &str,
    #[case] says: Option<&str>,
) {
    let mount = PathBuf::from("/mount");
    let error = explicit(&mount.join(cgroup), std::slice::from_ref(&mount))
        .map(|path| assert_eq!(path, mount.join("kubepods")))
        .err()
        .map(|error| error.to_string());
    assert_eq!(error.is_some(), says.is_some(), "{error:?}");
    if let (Some(error), Some(says)) = (error, says) {
        assert!(error.contains(says) && error.contains("--cgroup"), "{error}");
    }
}
