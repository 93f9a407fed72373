use super::*;
use crate::pods::{Inventory, Pod};
use tokio::sync::watch;

fn inventory(pods: usize) -> Arc<Inventory> {
    let pod = |number: usize| {
        let pod = serde_json::json!({
            "metadata": { "name": format!("web-{number}"), "namespace": "apps", "uid": format!("u{number}") },
        });
        Arc::new(Pod::from_api(serde_json::from_value(pod).unwrap()).unwrap())
    };
    Arc::new(Inventory::new((0..pods).map(pod), [], []))
}

fn uid(number: usize) -> PodUid {
    format!("u{number}").parse().unwrap()
}

#[test]
fn refusals_are_counted_by_kind_and_by_the_name_of_the_pod() {
    let (_pods, known) = watch::channel(inventory(2));
    let refusals = Refusals::new(known);
    refusals.note(RefusalKind::AnsweredElsewhere, Some(&uid(1)), 3);
    refusals.note(RefusalKind::AnsweredElsewhere, Some(&uid(1)), 4);
    refusals.note(RefusalKind::NoOption, None, 1);
    refusals.note(RefusalKind::NoRoom, Some(&uid(7)), 1);
    let count = |kind, pod: (&str, &str), count| RefusalCount {
        kind,
        pod: (pod.0.to_owned(), pod.1.to_owned()),
        count,
    };
    let mut counted = refusals.counts();
    counted.retain(|one| one.count > 0);
    assert_eq!(
        counted,
        [
            count(RefusalKind::NoOption, ("", ""), 1),
            count(RefusalKind::NoRoom, ("", ""), 1),
            count(RefusalKind::AnsweredElsewhere, ("apps", "web-1"), 7),
        ]
    );
}

#[test]
fn pods_that_are_gone_take_no_memory() {
    let (pods, known) = watch::channel(inventory(500));
    let refusals = Refusals::new(known);
    for number in 0..500 {
        refusals.note(RefusalKind::NoRoom, Some(&uid(number)), 1);
    }
    let none = RefusalKind::ALL.len();
    assert_eq!(refusals.counts().len(), none + 500);
    pods.send_replace(inventory(1));
    refusals.note(RefusalKind::NoRoom, Some(&uid(0)), 1);
    assert_eq!(refusals.counts().len(), none + 1);
}

#[test]
fn one_kind_of_one_pod_is_reported_once_in_ten_minutes_with_the_new_connections() {
    let (mut entry, now) = (Entry::default(), Instant::now());
    entry.count = 3;
    assert_eq!(entry.report(now), Some(3));
    entry.count = 50;
    assert_eq!(entry.report(now + REPEAT_INTERVAL / 2), None);
    assert_eq!(entry.report(now + REPEAT_INTERVAL), Some(47));
}

#[test]
fn every_kind_has_a_unique_name_and_an_explanation() {
    let mut labels: Vec<_> = RefusalKind::ALL.iter().map(|kind| kind.label()).collect();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!(labels.len(), RefusalKind::ALL.len());
    assert!(RefusalKind::ALL.iter().all(|kind| !kind.explanation().is_empty()));
}
