use super::*;
use crate::identify::Counts;
use crate::identify::refusals::RefusalKind;
use crate::telemetry::health::Part;
use crate::telemetry::metrics::{RequestKind, Requests, StsCalls, StsOutcome, TurnOutcome, Turns};

struct Fixed;

impl MetricSource for Fixed {
    fn connections(&self) -> Counts {
        Counts {
            served: 7,
            unidentified: 2,
            over_limit: 4,
            slowed_connections: 5,
            slowed_requests: 6,
        }
    }
    fn refusals(&self) -> Vec<RefusalCount> {
        let refusal = |kind, namespace: &str, pod: &str, count| RefusalCount {
            kind,
            pod: (namespace.to_owned(), pod.to_owned()),
            count,
        };
        vec![
            refusal(RefusalKind::NoOption, "", "", 2),
            refusal(RefusalKind::AnsweredElsewhere, "apps", "web", 11),
        ]
    }
    fn guard(&self, _counter: GuardCounter) -> u64 {
        8
    }
    fn kernel(&self, _counter: Counter) -> u64 {
        9
    }
    fn pods(&self) -> usize {
        3
    }
    fn sessions(&self) -> SessionCounts {
        SessionCounts {
            valid: 10,
            least_left: Some(Duration::from_secs(1500)),
            ..SessionCounts::default()
        }
    }
    fn register(&self, registry: &mut Registry) {
        let requests = Requests::default();
        requests.answered(RequestKind::Credentials, 200, Duration::from_micros(30));
        requests.answered(RequestKind::Other, 418, Duration::from_micros(30));
        requests.register(registry);
        let calls = StsCalls::default();
        calls.ended(StsOutcome::Denied, Duration::from_millis(60));
        calls.register(registry);
        let turns = Turns::default();
        turns.ended(TurnOutcome::GivenUp);
        turns.register_sessions(registry);
        Turns::default().register_node_requests(registry);
    }
}

#[test]
fn metrics_have_these_names_and_labels() {
    let health = Health::starting([Part::Pods, Part::Interception]);
    health.set(Part::Pods, Condition::Fine);
    let text = text(&Fixed, &health, &[(Verdict::Refused, 2)].into()).unwrap();
    for line in [
        concat!(
            "metaproxy_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
        "metaproxy_connections_total{outcome=\"served\"} 7",
        "metaproxy_connections_total{outcome=\"unidentified\"} 2",
        "metaproxy_connections_total{outcome=\"over_limit\"} 4",
        "metaproxy_refused_connections_total{kind=\"no_option\",namespace=\"\",pod=\"\"} 2",
        "metaproxy_refused_connections_total{kind=\"answered_elsewhere\",namespace=\"apps\",pod=\"web\"} 11",
        "metaproxy_slowed_total{what=\"connection\"} 5",
        "metaproxy_slowed_total{what=\"request\"} 6",
        "metaproxy_guard_dropped_packets_total 8",
        "metaproxy_pods 3",
        "metaproxy_ready 0",
        "metaproxy_part_serving{part=\"interception\"} 0",
        "metaproxy_part_serving{part=\"pods\"} 1",
        "metaproxy_part_ok{part=\"pods\"} 1",
        "metaproxy_part_troubles_total{part=\"pods\"} 0",
        "metaproxy_pod_verdicts{verdict=\"refused\"} 2",
        "metaproxy_pod_verdicts{verdict=\"no_role\"} 0",
        "metaproxy_sessions{state=\"valid\"} 10",
        "metaproxy_session_least_left_seconds 1500.0",
        "metaproxy_requests_total{kind=\"credentials\",code=\"200\"} 1",
        "metaproxy_requests_total{kind=\"other\",code=\"other\"} 1",
        "metaproxy_requests_total{kind=\"node\",code=\"503\"} 0",
        "metaproxy_request_duration_seconds_bucket{le=\"0.00005\",kind=\"credentials\"} 1",
        "metaproxy_sts_calls_total{outcome=\"denied\"} 1",
        "metaproxy_sts_calls_total{outcome=\"issued\"} 0",
        "metaproxy_sts_call_duration_seconds_count 1",
        "metaproxy_new_sessions_total{turn=\"given_up\"} 1",
        "metaproxy_new_sessions_total{turn=\"slowed\"} 0",
        "metaproxy_node_requests_total{turn=\"prompt\"} 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert_eq!(
        text.matches("metaproxy_kernel_connections_total{").count(),
        Counter::ALL.len()
    );
}
