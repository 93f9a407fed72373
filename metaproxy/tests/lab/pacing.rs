//! Tenants that change the parameters of a session hundreds of times a second.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::cluster::{Cluster, NODE, cluster_alone};
use crate::common::sessions::{ROLE, document, document_is_good};
use crate::common::{Node, eventually, node_alone};
use metaproxy_lab::agent::Agent;
use metaproxy_lab::pod::{Pod, PodSpec};
use rstest::rstest;
use serde_json::json;

/// Returns the maximum number of sessions for one pod in this time: 5 at once, and one every 2 s. One more may fall
/// on the edge of the interval.
fn may_have(time: Duration) -> usize {
    5 + time.as_secs() as usize / 2 + 1
}

/// Counts the calls that were not for the neighbours.
fn calls_of_tenant(node: &Node) -> usize {
    let calls = node.sts.calls();
    calls
        .iter()
        .filter(|call| !call.role.contains("neighbour"))
        .count()
}

fn audits_of_tenant(agent: &Agent) -> usize {
    let said = agent.logged();
    let audits = said.lines().filter(|line| line.contains("audit: session issued"));
    audits.filter(|line| !line.contains("neighbour")).count()
}

/// Makes a change 400 times a second during `look`, and returns the number of the last one.
fn churn(mut change: impl FnMut(usize) + Send, look: impl FnOnce()) -> usize {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let churning = scope.spawn(|| {
            let start = Instant::now();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                change(number);
                let due = start + Duration::from_micros(2500) * number as u32;
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            number
        });
        {
            let _stop = SetOnDrop(&stop);
            look();
        }
        churning.join().unwrap()
    })
}

/// Ends the changes when it is dropped, also if an assertion in `look` fails. Otherwise the scope would wait for the
/// changing thread for ever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns whether a pod gets its credentials. A pod whose session waits gets none.
fn is_served(pod: &Pod, role: &str) -> bool {
    let answer = document(pod, role);
    answer.status == 200 && answer.body.contains(&format!("secret-of-{role}"))
}

/// The property of its pod that a tenant changes.
#[derive(Clone, Copy, Debug)]
enum Changes {
    Role,
    ExternalId,
    SessionName,
    All,
    ServiceAccount,
}

impl Changes {
    fn make(self, cluster: &Cluster, tenant: &Pod, number: usize) {
        let (id, name) = ("iam.amazonaws.com/external-id", "iam.amazonaws.com/session-name");
        let value = format!("tenant-{number}");
        let annotations = match self {
            Self::Role => json!({ ROLE: value }),
            Self::ExternalId => json!({ ROLE: "tenant", id: value }),
            Self::SessionName => json!({ ROLE: "tenant", name: value }),
            Self::All => json!({ ROLE: value, id: value, name: value }),
            Self::ServiceAccount => {
                let role = format!("arn:aws:iam::123456789012:role/{value}");
                cluster.api.put(
                    "serviceaccounts",
                    json!({ "metadata": {
                        "name": "web", "namespace": "apps", "annotations": { "eks.amazonaws.com/role-arn": role },
                    } }),
                );
                return;
            }
        };
        cluster.put("tenant", tenant, annotations);
    }

    fn role(self, number: usize) -> String {
        match self {
            Self::ExternalId | Self::SessionName => "tenant".to_owned(),
            _ => format!("tenant-{number}"),
        }
    }
}

#[rstest]
#[case::role(Changes::Role, &[])]
#[case::external_id(Changes::ExternalId, &[])]
#[case::session_name(Changes::SessionName, &[])]
#[case::all_of_them(Changes::All, &[])]
#[case::sessions_of_roles(Changes::All, &["--session-scope", "role"])]
#[case::service_account(Changes::ServiceAccount, &["--web-identity", "on"])]
fn session_parameters_that_change_400_times_a_second_cause_few_sts_calls(
    #[case] changes: Changes,
    #[case] flags: &[&str],
) {
    const ATTACK_TIME: Duration = Duration::from_secs(5);
    let Some(cluster) = cluster_alone() else { return };
    let tenant = cluster.pod("tenant");
    changes.make(&cluster, &tenant, 0);
    cluster.put("tenant", &tenant, json!({}));
    let neighbour = cluster.with_role("neighbour", "neighbour");
    let late = cluster.pod("late");
    let agent = cluster.agent(flags);
    assert!(document_is_good(&neighbour, "neighbour"));
    let start = Instant::now();
    let change = |number| changes.make(&cluster, &tenant, number);
    let number = churn(change, || {
        std::thread::sleep(ATTACK_TIME / 2);
        // A pod that starts meanwhile gets its role in time, and so does a pod that ran before.
        cluster.put("late", &late, json!({ ROLE: "neighbour-late" }));
        assert!(document_is_good(&late, "neighbour-late"));
        while start.elapsed() < ATTACK_TIME {
            assert!(document_is_good(&neighbour, "neighbour") && document_is_good(&late, "neighbour-late"));
            // The tenant's requests are answered in time too, with credentials or with an error.
            let status = document(&tenant, "tenant").status;
            assert!([200, 404, 503].contains(&status), "{status}");
        }
    });
    assert!(number > 1000, "{number} changes");
    let (calls, limit) = (calls_of_tenant(&cluster.node), may_have(start.elapsed()));
    assert!(
        (5..=limit).contains(&calls),
        "{calls} calls in {:?}",
        start.elapsed()
    );
    eventually("what it has in the end is served", || {
        is_served(&tenant, &changes.role(number))
    });
    let (calls, limit) = (calls_of_tenant(&cluster.node), may_have(start.elapsed()));
    assert!(calls <= limit, "{calls} calls in {:?}", start.elapsed());
    eventually("each has its line", || audits_of_tenant(&agent) == calls);
}

/// A user with the right to create pods can bind them to a node without the scheduler. The kubelet refuses pods for
/// which it has no room, and they never run.
#[test]
fn creating_400_pods_a_second_causes_few_sts_calls() {
    const ATTACK_TIME: Duration = Duration::from_secs(5);
    let Some(cluster) = cluster_alone() else { return };
    let neighbour = cluster.with_role("neighbour", "neighbour");
    let late = cluster.pod("late");
    let _agent = cluster.agent(&[]);
    assert!(document_is_good(&neighbour, "neighbour"));
    let make = |number: usize| {
        let uid = format!("bbbbbbbb-0000-0000-0000-{number:012}");
        let pod = json!({
            "metadata": {
                "name": format!("made-{number}"), "namespace": "apps", "uid": uid,
                "annotations": { ROLE: format!("tenant-{number}") },
            },
            "spec": { "nodeName": NODE, "serviceAccountName": "web", "containers": [] },
            "status": { "phase": "Pending" },
        });
        cluster.api.put("pods", pod);
        // At most 250 pods exist at a time, as on a node.
        if let Some(old) = number.checked_sub(250) {
            cluster.api.delete("pods", "apps", &format!("made-{old}"));
        }
    };
    let start = Instant::now();
    let number = churn(make, || {
        std::thread::sleep(ATTACK_TIME / 2);
        // A pod that starts meanwhile gets its role in time, and so does a pod that ran before.
        cluster.put("late", &late, json!({ ROLE: "neighbour-late" }));
        assert!(document_is_good(&late, "neighbour-late"));
        while start.elapsed() < ATTACK_TIME {
            assert!(document_is_good(&neighbour, "neighbour") && document_is_good(&late, "neighbour-late"));
        }
    });
    let (calls, limit) = (
        calls_of_tenant(&cluster.node),
        250 + 10 * (start.elapsed().as_secs() as usize + 1),
    );
    println!("{number} pods, {calls} calls");
    assert!(number > 600, "{number} pods");
    assert!(
        calls >= 200 && calls <= limit,
        "{calls} calls of {number} pods, limit {limit}"
    );
}

#[test]
fn a_manifest_that_changes_all_the_time_causes_few_sts_calls_and_a_reason_in_the_answer() {
    const ATTACK_TIME: Duration = Duration::from_secs(6);
    let Some(node) = node_alone() else { return };
    let tenant = node.lab.pod(PodSpec::with_role("tenant", "tenant-0")).unwrap();
    let neighbour = node
        .lab
        .pod(PodSpec::with_role("neighbour", "neighbour"))
        .unwrap();
    let agent = node.agent();
    let (start, mut number, mut reasons) = (Instant::now(), 0, 0);
    while start.elapsed() < ATTACK_TIME {
        number += 1;
        let role = format!("tenant-{number}");
        tenant.write_manifest(&[(ROLE.to_owned(), role.clone())]).unwrap();
        let asked = Instant::now();
        let answer = document(&tenant, &role);
        assert!(asked.elapsed() < Duration::from_millis(1500));
        reasons += usize::from(answer.status == 503 && answer.body.contains("are paced"));
        assert!(document_is_good(&neighbour, "neighbour"));
    }
    assert!(number > 5 && reasons > 0, "{number} changes, {reasons} reasons");
    let role = format!("tenant-{number}");
    eventually("what it has in the end is served", || {
        document_is_good(&tenant, &role)
    });
    let (calls, limit) = (calls_of_tenant(&node), may_have(start.elapsed()));
    assert!((5..=limit).contains(&calls), "{calls} calls");
    assert!(
        agent.logged().contains("a new session waits"),
        "{}",
        agent.logged()
    );
}
