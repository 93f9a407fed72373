//! Identification of a connection's pod. Honest clients are always identified, and no client is identified as another
//! pod.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::common::identity::{REFUSED, assert_only, twins, v4_listener};
use crate::common::{IMDS, Outcomes, client_binary, counts, dial, node, outcomes, start_dial};
use metaproxy::cgroups::Locator;
use metaproxy_lab::pod::{Pod, PodSpec};

const NAMES: [&str; 8] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6", "p7"];

#[test]
fn each_of_20_000_connections_from_8_pods_gets_its_own_pods_role() {
    let Some(node) = node() else { return };
    let pods: Vec<Pod> = NAMES
        .iter()
        .map(|name| node.lab.pod(PodSpec::with_role(name, name)).unwrap())
        .collect();
    let mut agent = node.agent();
    let running: Vec<_> = pods
        .iter()
        .map(|pod| start_dial(pod, &["--count", "2500", "--threads", "4"]))
        .collect();
    for (child, name) in running.into_iter().zip(NAMES) {
        assert_eq!(outcomes(child), counts([(name, 2500)]));
    }
    for (event, count) in [
        ("redirected", 20_000),
        ("proven", 20_000),
        ("bad_tag", 0),
        ("handshake_failures", 0),
    ] {
        assert_eq!(node.kernel_count(event), count, "{event}");
    }
    assert!(agent.stop().unwrap().success());
    agent.wait_for("served=20000 refused=0").unwrap();
    assert_eq!(node.imds.seen_from_pods(), []);
}

/// The node's route leads to one of the pods and then to the other, as when an address is assigned to a new pod.
#[test]
fn pods_that_use_the_same_address_and_port_one_after_the_other_get_their_own_roles() {
    let Some(node) = node() else { return };
    let (victim, twin) = twins(&node);
    let _agent = node.agent();
    let to = |pod: &Pod| {
        let route = format!("route replace {}/32 dev pod{}", victim.ip(), pod.number());
        assert!(
            node.host_command("ip")
                .args(route.split(' '))
                .status()
                .unwrap()
                .success()
        );
    };
    for port in 22_000..22_050 {
        let source = format!("{}:{port}", victim.ip());
        for (pod, role) in [
            (&victim, "role-victim"),
            (&twin, "role-twin"),
            (&victim, "role-victim"),
        ] {
            to(pod);
            assert_eq!(dial(pod, &["--source", &source]), counts([(role, 1)]), "{source}");
        }
    }
}

#[test]
fn connections_that_end_before_they_are_accepted_do_not_affect_other_pods() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let b = node.lab.pod(PodSpec::with_role("b", "role-b")).unwrap();
    let agent = node.agent();
    // The agent is stopped, so that connections end before they are accepted.
    for then in ["close", "reset"] {
        agent.signal(nix::sys::signal::Signal::SIGSTOP).unwrap();
        let got = dial(&a, &["--then", then, "--count", "500", "--threads", "4"]);
        assert_eq!(got.values().sum::<usize>(), 500, "{got:?}");
        agent.signal(nix::sys::signal::Signal::SIGCONT).unwrap();
        assert_eq!(
            dial(&b, &["--count", "500", "--threads", "4"]),
            counts([("role-b", 500)])
        );
    }
}

#[test]
fn a_pod_that_reuses_a_source_port_is_identified_each_time() {
    let Some(node) = node() else { return };
    let a = node.lab.pod(PodSpec::with_role("a", "role-a")).unwrap();
    let _agent = node.agent();
    let source = format!("{}:24000", a.ip());
    let words = [
        "--to",
        IMDS,
        "--source",
        &source,
        "--reuse-port",
        "--count",
        "500",
    ];
    assert_eq!(dial(&a, &words), counts([("role-a", 500)]));
}

#[test]
fn the_listener_serves_pods_only() {
    let Some(node) = node() else { return };
    let unknown = node
        .lab
        .pod(PodSpec {
            known: false,
            ..PodSpec::without_role("unknown")
        })
        .unwrap();
    let agent = node.agent();
    let listener = v4_listener(&agent);
    assert_only(
        &node.host_dial(&["--to", &listener, "--count", "20"]),
        &REFUSED,
        "a process of the node",
    );
    let elsewhere = node.lab.aws().run(|| {
        std::process::Command::new(client_binary())
            .args(["dial", "--to", &listener])
            .output()
    });
    let got: Outcomes = serde_json::from_slice(&elsewhere.unwrap().unwrap().stdout).unwrap();
    assert_only(&got, &REFUSED, "another host");
    // The request of a pod that is not in the inventory is held, and then gets 503. It never gets the answer for a
    // pod without a role.
    let start = std::time::Instant::now();
    assert_eq!(dial(&unknown, &[]), counts([("status 503", 1)]));
    assert!(start.elapsed() >= Duration::from_millis(800), "it was held");
}

#[test]
fn a_cached_cgroup_is_never_taken_for_another_one() {
    let Some(node) = node() else { return };
    let kubepods = node.lab.kubepods();
    let pods = Locator::new(None, Some(&kubepods))
        .unwrap()
        .locate()
        .unwrap()
        .unwrap();
    let [a, b] = [
        "aaaaaaaa-0000-0000-0000-000000000001",
        "bbbbbbbb-0000-0000-0000-000000000001",
    ];
    let made = |pod: &str, name: &str| {
        let dir = kubepods.join(format!("pod{pod}")).join(name);
        fs::create_dir_all(&dir).unwrap();
        let id = fs::metadata(&dir).unwrap().ino();
        (dir, id)
    };
    let of = |id: u64| pods.pod_of(id).map(|pod| pod.to_string()).ok();

    let (first_dir, first) = made(a, "c1");
    let (_, other) = made(b, "c1");
    for _ in 0..2 {
        assert_eq!((of(first), of(other)), (Some(a.to_owned()), Some(b.to_owned())));
    }
    fs::remove_dir(&first_dir).unwrap();
    let (again_dir, again) = made(a, "c1");
    assert_ne!(first, again, "an id is not used twice");
    fs::remove_dir(&again_dir).unwrap();
    assert_eq!(of(again), None, "gone before it was asked for");
    assert_eq!(
        of(first),
        Some(a.to_owned()),
        "its connections are still its pod's"
    );

    // These are more cgroups than the cache holds.
    for number in 0..5000 {
        let (dir, id) = made(b, &format!("n{number}"));
        assert_eq!(of(id).as_deref(), Some(b));
        fs::remove_dir(dir).unwrap();
    }
    assert_eq!((of(first), of(other)), (None, Some(b.to_owned())));
}
