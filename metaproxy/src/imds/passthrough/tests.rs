use super::*;
use std::collections::HashMap;
use std::sync::Mutex;

/// The time that a request may wait, as in the agent.
const DEADLINE: Duration = Duration::from_millis(800);

fn passthrough() -> Arc<Passthrough> {
    Arc::new(Passthrough::new(Upstream::new(
        "http://127.0.0.1:1".parse().unwrap(),
    )))
}

fn pod(number: usize) -> PodUid {
    format!("uid-{number}").parse().unwrap()
}

async fn permits(passthrough: &Passthrough, number: usize) -> Result<Permits, Busy> {
    passthrough.permits(&pod(number), Instant::now() + DEADLINE).await
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// The moments at which requests were passed on, by pod.
type Passed = Arc<Mutex<HashMap<usize, Vec<Instant>>>>;

/// Starts pods that make requests on `connections` connections each. A connection makes the next request as soon as
/// it has an answer, which takes the time `takes`.
fn flood(passthrough: &Arc<Passthrough>, pods: usize, connections: usize, takes: Duration) -> Passed {
    let passed = Passed::default();
    for number in (0..pods).flat_map(|pod| std::iter::repeat_n(pod, connections)) {
        let (passthrough, passed) = (Arc::clone(passthrough), Arc::clone(&passed));
        tokio::spawn(async move {
            loop {
                if let Ok(_permits) = permits(&passthrough, number).await {
                    let now = Instant::now();
                    passed.lock().unwrap().entry(number).or_default().push(now);
                    pass(takes).await;
                }
            }
        });
    }
    passed
}

/// Returns the maximum number of requests that began within one second.
fn most_in_a_second(passed: &Passed) -> usize {
    let mut all: Vec<Instant> = passed.lock().unwrap().values().flatten().copied().collect();
    all.sort_unstable();
    let until = |start: Instant| all.partition_point(|at| at.duration_since(start) < Duration::from_secs(1));
    (0..all.len())
        .map(|first| until(all[first]) - first)
        .max()
        .unwrap_or(0)
}

#[tokio::test(start_paused = true)]
async fn one_pod_that_floods_gets_its_share_and_no_more() {
    let passthrough = passthrough();
    let passed = flood(&passthrough, 1, 200, Duration::from_millis(1));
    pass(Duration::from_secs(10)).await;
    let count = passed.lock().unwrap()[&0].len();
    assert!(
        (230..=241).contains(&count),
        "40 at once and 20 a second: {count}"
    );
    assert!(most_in_a_second(&passed) <= 60);
}

#[tokio::test(start_paused = true)]
async fn all_pods_together_get_the_limit_of_the_node_and_take_turns() {
    let passthrough = passthrough();
    let passed = flood(&passthrough, 50, 10, Duration::from_millis(1));
    pass(Duration::from_secs(20)).await;
    let counts: Vec<usize> = passed.lock().unwrap().values().map(Vec::len).collect();
    let sum: usize = counts.iter().sum();
    assert!((2000..=2051).contains(&sum), "50 at once and 100 a second: {sum}");
    assert!(most_in_a_second(&passed) <= 150, "750 packets");
    let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
    assert!(counts.len() == 50 && most - least <= 5, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_makes_few_requests_goes_first_however_many_pods_flood() {
    // Columns: the number of pods that flood, how long the service takes, how long the other pod pauses, and how long
    // its requests may wait (times in milliseconds). If the service is slow, all slots are taken until its answers
    // come.
    for (pods, takes, pause, limit) in [(40, 1, 500, 20), (240, 1, 3000, 20), (240, 400, 5000, 700)] {
        let passthrough = passthrough();
        let passed = flood(&passthrough, pods, 8, Duration::from_millis(takes));
        pass(Duration::from_secs(5)).await;
        for _ in 0..10 {
            let start = Instant::now();
            assert!(permits(&passthrough, 1000).await.is_ok());
            let limit = Duration::from_millis(limit);
            assert!(start.elapsed() <= limit, "{pods}, {takes}: {:?}", start.elapsed());
            pass(Duration::from_millis(pause)).await;
        }
        assert_eq!(
            passed.lock().unwrap().len(),
            pods,
            "the others get their turns too"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_few_requests_do_not_wait_at_all() {
    let passthrough = passthrough();
    for number in 0..NODE_BURST as usize {
        let start = Instant::now();
        assert!(permits(&passthrough, number).await.is_ok());
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
    let count = |outcome| passthrough.turns().count(outcome);
    assert_eq!(count(TurnOutcome::Prompt), u64::from(NODE_BURST));
    assert!(permits(&passthrough, 0).await.is_ok());
    assert_eq!((count(TurnOutcome::Slowed), count(TurnOutcome::GivenUp)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_fails_at_its_deadline_and_names_the_limit_that_it_waited_for() {
    let passthrough = passthrough();
    // One pod has taken all its slots.
    let mut held = Vec::new();
    for _ in 0..pod_limits::MAX_CONCURRENT_REQUESTS {
        held.push(permits(&passthrough, 0).await.unwrap());
    }
    let start = Instant::now();
    assert_eq!(permits(&passthrough, 0).await.unwrap_err(), Busy::Pod);
    assert_eq!(start.elapsed(), DEADLINE);
    // All slots of the node are taken.
    for number in 1..MAX_CONCURRENT_REQUESTS / pod_limits::MAX_CONCURRENT_REQUESTS {
        for _ in 0..pod_limits::MAX_CONCURRENT_REQUESTS {
            held.push(permits(&passthrough, number).await.unwrap());
        }
    }
    let start = Instant::now();
    assert_eq!(permits(&passthrough, 100).await.unwrap_err(), Busy::Node);
    assert_eq!(start.elapsed(), DEADLINE);
    assert_eq!(passthrough.turns().count(TurnOutcome::GivenUp), 2);
    // Requests that were given up take nothing from later ones.
    drop(held);
    assert!(permits(&passthrough, 0).await.is_ok() && permits(&passthrough, 100).await.is_ok());
    assert!(Busy::Pod.to_string().contains("4 at a time, 20 a second"));
    assert!(Busy::Node.to_string().contains("32 at a time, 100 a second"));
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_gone_take_no_memory() {
    let passthrough = passthrough();
    for number in 0..1000 {
        assert!(permits(&passthrough, number).await.is_ok());
        pass(Duration::from_millis(50)).await;
    }
    assert!(passthrough.pod_limits.len() < 50 && passthrough.queue.len() <= 250);
}
