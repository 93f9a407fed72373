use super::*;
use rstest::rstest;
use serde_json::json;

const UID: &str = "0f3c9a52-1d6e-4b7a-9c55-3a2f7f0e8d11";
const UID_: &str = "0f3c9a52_1d6e_4b7a_9c55_3a2f7f0e8d11";
const OTHER: &str = "11111111-2222-3333-4444-555555555555";

/// A tree of directories with files `cgroup.events`, instead of real cgroups.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new(cgroups: &[(&str, bool)]) -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        for (path, has_processes) in cgroups {
            tree.set(path, *has_processes);
        }
        tree
    }

    fn set(&self, path: &str, has_processes: bool) {
        let path = path
            .replace("{U}", UID)
            .replace("{U_}", UID_)
            .replace("{V}", OTHER);
        let dir = self.0.path().join(path);
        fs::create_dir_all(&dir).unwrap();
        let events = format!("populated {}\nfrozen 0\n", u8::from(has_processes));
        fs::write(dir.join("cgroup.events"), events).unwrap();
    }

    fn finder(&self, pods: &str, status: &str) -> (PodFinder, watch::Sender<Arc<Inventory>>) {
        fs::create_dir_all(self.0.path().join(pods)).unwrap();
        let cgroup = PodsCgroup::open(self.0.path().join(pods)).unwrap();
        let current = CurrentPods::default();
        *current.write().unwrap() = Some(Arc::new(cgroup));
        let pod = json!({
            "metadata": { "name": "web", "namespace": "apps", "uid": UID },
            "status": { "phase": status },
        });
        let pod = Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap();
        let (publish, pods) = watch::channel(Arc::new(Inventory::new([Arc::new(pod)], [], [])));
        (
            PodFinder::new(pods, current, vec![self.0.path().to_owned()]),
            publish,
        )
    }
}

fn kind(condition: &Condition) -> &'static str {
    match condition {
        Condition::Fine => "fine",
        Condition::Degraded(_) => "degraded",
        Condition::Failing(_) => "failing",
    }
}

#[rstest]
#[case::in_place("kubepods", &[("kubepods/burstable/pod{U}", true)], "Running", "fine", "fine")]
#[case::in_place_without_a_status("kubepods", &[("kubepods/pod{U}", true)], "", "fine", "fine")]
#[case::of_another_cgroup("host", &[("kubepods/besteffort/pod{U}", true)], "Running", "failing", "failing")]
#[case::of_another_cgroup_without_a_status("host", &[("kubepods/pod{U}", true)], "", "failing", "failing")]
#[case::of_another_driver("kubepods.slice", &[
    ("kubepods.slice/kubepods-pod{U_}.slice", false),
    ("system.slice/kubepods-pod{U_}.slice:cri-containerd:4d5e", true),
], "Running", "failing", "failing")]
#[case::starting_without_a_status("kubepods", &[], "Pending", "fine", "fine")]
#[case::made_and_starting("kubepods", &[("kubepods/pod{U}", false)], "Pending", "fine", "fine")]
#[case::runs_by_its_status_only("kubepods", &[("kubepods/pod{U}", false)], "Running", "fine", "degraded")]
#[case::runs_nowhere("kubepods", &[], "Running", "fine", "degraded")]
#[case::over("host", &[("kubepods/pod{U}", true)], "Succeeded", "fine", "fine")]
#[case::ended_elsewhere("kubepods", &[("old/kubepods/pod{U}", false)], "", "fine", "fine")]
#[case::another_pod_has_nested_its_name("kubepods", &[("kubepods/pod{V}/4d5e/pod{U}", true)], "", "fine", "fine")]
fn a_pod_without_a_process_below_the_pods_cgroup_is_detected(
    #[case] pods: &str,
    #[case] cgroups: &[(&str, bool)],
    #[case] status: &str,
    #[case] at_once: &str,
    #[case] later: &str,
) {
    let tree = Tree::new(cgroups);
    let (mut finder, _publish) = tree.finder(pods, status);
    let start = Instant::now();
    assert_eq!(kind(&finder.check(start).condition()), at_once);
    let found = finder.check(start + START_TIMEOUT);
    let condition = found.condition();
    assert_eq!(kind(&condition), later, "{condition:?}");
    let uid = UID.parse().unwrap();
    assert_eq!(found.not_intercepted(&uid).is_some(), later == "failing");
    if let Condition::Degraded(says) | Condition::Failing(says) = condition {
        let cgroup = tree.0.path().join(pods);
        let says_where = says.contains("1 of 1 pods of this node are not below")
            && says.contains(cgroup.to_str().unwrap())
            && says.contains("apps/web");
        assert!(says_where, "{says}");
    }
}

#[test]
fn a_missing_pod_that_runs_again_gets_the_whole_start_time_again() {
    let tree = Tree::new(&[("kubepods/pod{U}", false)]);
    let (mut finder, _publish) = tree.finder("kubepods", "Running");
    let start = Instant::now();
    let mut look = |tree: &Tree, has_processes, after| {
        tree.set("kubepods/pod{U}", has_processes);
        kind(&finder.check(start + after).condition())
    };
    assert_eq!(look(&tree, false, Duration::ZERO), "fine");
    assert_eq!(look(&tree, false, START_TIMEOUT), "degraded");
    assert_eq!(look(&tree, true, START_TIMEOUT), "fine");
    assert_eq!(look(&tree, false, START_TIMEOUT), "fine");
    assert_eq!(look(&tree, false, 2 * START_TIMEOUT), "degraded");
}

#[rstest]
#[case("pod0f3c", Some("0f3c"))]
#[case("kubepods-pod0f3c.slice", Some("0f3c"))]
#[case(
    "kubelet-kubepods-burstable-pod0f_3c.slice:cri-containerd:4d5e",
    Some("0f_3c")
)]
#[case("kubepods", None)]
#[case("kubelet-kubepods.slice", None)]
#[case("kubepods-burstable.slice", None)]
#[case("pod", None)]
fn the_uid_is_read_from_every_form_of_a_cgroups_name(#[case] name: &str, #[case] uid: Option<&str>) {
    assert_eq!(uid_in(name), uid);
}
