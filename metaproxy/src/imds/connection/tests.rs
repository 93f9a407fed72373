use super::*;
use crate::captured_log::CapturedLog;
use crate::credentials::{ObtainError, Session, SessionKey, Sessions};
use crate::identify::ClientLimits;
use crate::imds::ImdsV1Policy;
use crate::imds::decisions::tests::{client, decisions};
use crate::imds::handler::tests::{ByName, handler, handler_with};
use rstest::rstest;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        connections: 1,
        connection_rate: 512,
        request_rate: 512,
        head: 8192,
        head_timeout: 5 * SECOND,
        idle: 60 * SECOND,
    }
}

/// Makes the server of a pod with one role. The senders of its state must outlive it.
fn connections(phase: watch::Receiver<Phase>) -> (Connections<ByName>, impl Sized) {
    let (pods, rules, _) = decisions("one");
    let (policy, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let handler = Arc::new(handler(pods.subscribe(), rules.subscribe(), imds_v1));
    let reporter = Arc::new(RefusalReporter::new(None));
    let connections = Connections::new(handler, reporter, phase, limits());
    (connections, (pods, rules, policy))
}

async fn permit() -> Permit {
    let admission = ClientLimits::new(limits()).admit(&()).unwrap();
    let deadline = tokio::time::Instant::now();
    admission.permit(deadline).await.unwrap()
}

#[rstest]
#[case::at_once(&[Phase::Closing])]
#[case::after_a_while(&[Phase::Draining, Phase::Closing])]
#[tokio::test(start_paused = true)]
async fn a_silent_connection_is_closed_with_the_phase_and_not_before(#[case] phases: &[Phase]) {
    let (phase, watched) = watch::channel(Phase::Serving);
    let (connections, _senders) = connections(watched);
    let client = client("aaaaaaaa-0000-0000-0000-000000000001");
    let permit = permit().await;
    let (mut pod, server) = tokio::io::duplex(4096);
    let mut serving = pin!(connections.serve(server, &client, &permit));
    pod.write_all(b"GET /latest/meta-data/iam/ HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    for next in phases {
        assert!(tokio::time::timeout(SECOND, &mut serving).await.is_err(), "open");
        phase.send_replace(*next);
    }
    let ended = tokio::time::timeout(SECOND, serving).await;
    assert!(ended.is_ok_and(|ended| ended.is_ok()));
    let mut answer = String::new();
    pod.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Returns the counts of requests that were answered, as a scrape shows them.
fn counted<I: Issuer>(connections: &Connections<I>) -> Vec<String> {
    let mut registry = prometheus_client::registry::Registry::default();
    connections.metrics().register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let is_counted = |line: &&str| line.starts_with("requests_total") && !line.ends_with(" 0");
    text.lines().filter(is_counted).map(str::to_owned).collect()
}

/// The pod's role is refused, which the agent reports in a log line and an event.
#[tokio::test(start_paused = true)]
async fn a_dry_run_leaves_no_trace_and_suppresses_no_later_report() {
    let (pods, rules, _) = decisions("a b");
    let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Denied);
    let (_phase, phase) = watch::channel(Phase::Serving);
    let handler = Arc::new(handler(pods.subscribe(), rules.subscribe(), imds_v1));
    let (owners, mut events) = crate::telemetry::pod_event::channel();
    let reporter = Arc::new(RefusalReporter::new(Some(owners)));
    let connections = Connections::new(Arc::clone(&handler), reporter, phase, limits());
    let client = client("aaaaaaaa-0000-0000-0000-000000000001");
    let list = "/latest/meta-data/iam/security-credentials/";
    let (log, _capturing) = CapturedLog::start(tracing::Level::DEBUG);

    let Outcome::RoleName(name) = handler.dry_run(&client, list).await.outcome else {
        panic!("a refused role has a name");
    };
    let path = &format!("{list}{name}");
    let dry = handler.dry_run(&client, path).await.outcome;
    assert!(matches!(dry, Outcome::Refused(_)), "{dry:?}");
    assert_eq!(log.lines(), [""; 0]);
    assert_eq!(counted(&connections), [""; 0]);
    assert!(events.try_recv().is_err());

    let permit = permit().await;
    let (mut pod, server) = tokio::io::duplex(4096);
    let head =
        "PUT /latest/api/token HTTP/1.1\r\nHost: a\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let asking = async {
        pod.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = [0; 4096];
        let length = pod.read(&mut bytes).await.unwrap();
        let answer = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let token = answer.rsplit("\r\n").next().unwrap().to_owned();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nX-aws-ec2-metadata-token: {token}\r\nConnection: close\r\n\r\n"
        );
        pod.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        pod.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (answer, served) = tokio::join!(asking, connections.serve(server, &client, &permit));
    served.unwrap();
    assert!(answer.contains(response::REFUSED_CODE), "{answer}");
    assert!(log.lines().iter().any(|line| line.contains("WARN")), "news");
    assert!(events.try_recv().is_ok(), "an event");
    assert_eq!(counted(&connections).len(), 2, "the token's and the refused one");
}

/// Like a request of the pod, a dry run obtains the session that is served to the pod afterwards.
#[tokio::test(start_paused = true)]
async fn a_dry_run_calls_sts_like_a_request_and_only_once() {
    let (pods, rules, _) = decisions("one");
    let (_imds_v1, imds_v1) = watch::channel(ImdsV1Policy::Allowed);
    let calls = Arc::new(AtomicUsize::new(0));
    let sessions = Sessions::new(Counting(Arc::clone(&calls)));
    let handler = handler_with(
        sessions,
        "http://127.0.0.1:1",
        pods.subscribe(),
        rules.subscribe(),
        imds_v1,
    );
    let client = client("aaaaaaaa-0000-0000-0000-000000000001");
    for _ in 0..2 {
        let path = "/latest/meta-data/iam/security-credentials/one";
        let outcome = handler.dry_run(&client, path).await.outcome;
        assert!(matches!(outcome, Outcome::Credentials { .. }), "{outcome:?}");
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

struct Counting(Arc<AtomicUsize>);

impl Issuer for Counting {
    async fn issue(&self, key: &SessionKey) -> Result<Session, ObtainError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        ByName.issue(key).await
    }
}

/// A connection may have waited for its permit until the agent ends.
#[tokio::test(start_paused = true)]
async fn a_request_that_was_sent_before_the_end_is_answered() {
    let (_phase, watched) = watch::channel(Phase::Closing);
    let (connections, _senders) = connections(watched);
    let client = client("aaaaaaaa-0000-0000-0000-000000000001");
    let permit = permit().await;
    let (mut pod, server) = tokio::io::duplex(4096);
    pod.write_all(b"GET /latest/meta-data/iam/ HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    connections.serve(server, &client, &permit).await.unwrap();
    let mut answer = String::new();
    pod.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}
