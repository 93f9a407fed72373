//! Metrics of pods' requests, STS calls and turns of rate limiters. Labels have a small, fixed set of values. Every
//! series exists from the start, so that no series first appears with a value above 0.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the buckets for the duration of requests, in seconds. SDKs give up after one second.
const REQUEST_BUCKETS: [f64; 12] = [
    0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 0.8, 1.0,
];

/// Upper bounds of the buckets for the duration of STS calls, in seconds.
const STS_BUCKETS: [f64; 10] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];

/// The kind of resource that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A session token.
    Token,
    /// The role: the list of roles, or `iam/info`.
    Role,
    /// Credentials.
    Credentials,
    /// Metadata of the node.
    Node,
    /// Anything else, which is refused.
    Other,
}

impl RequestKind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Token, "token"),
        (Self::Role, "role"),
        (Self::Credentials, "credentials"),
        (Self::Node, "node"),
        (Self::Other, "other"),
    ];

    /// Returns the name of the kind in metrics and logs.
    pub fn label(self) -> &'static str {
        // `ALL` lists every variant, in the order of the variants.
        Self::ALL.get(self as usize).map_or("other", |(_, label)| label)
    }
}

/// HTTP statuses with a series of their own.
const STATUS_CODES: [(u16, &str); 10] = [
    (200, "200"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (408, "408"),
    (413, "413"),
    (502, "502"),
    (503, "503"),
];

const OTHER_STATUS_CODE: &str = "other";

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Metrics of pods' requests. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Requests {
    total: Family<Labels<2>, Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    series: Arc<Vec<Series>>,
}

/// The series of one kind. They are stored here so that counting a request needs no lookup in a table.
#[derive(Debug)]
struct Series {
    by_code: Vec<Counter>,
    other: Counter,
    seconds: Histogram,
}

fn request_histogram() -> Histogram {
    Histogram::new(REQUEST_BUCKETS)
}

impl Default for Requests {
    fn default() -> Self {
        let total: Family<Labels<2>, Counter> = Family::default();
        let seconds = Family::new_with_constructor(request_histogram as fn() -> Histogram);
        let series = RequestKind::ALL.map(|(_, kind)| {
            let counter = |code| total.get_or_create_owned(&[("kind", kind), ("code", code)]);
            Series {
                by_code: STATUS_CODES.iter().map(|(_, code)| counter(*code)).collect(),
                other: counter(OTHER_STATUS_CODE),
                seconds: seconds.get_or_create_owned(&[("kind", kind)]),
            }
        });
        Self {
            total,
            seconds,
            series: Arc::new(series.into()),
        }
    }
}

impl Requests {
    /// Counts a request that was answered.
    pub fn answered(&self, kind: RequestKind, code: u16, took: Duration) {
        let Some(series) = self.series.get(kind as usize) else {
            return;
        };
        let known = STATUS_CODES.iter().position(|(known, _)| *known == code);
        let counter = known.and_then(|index| series.by_code.get(index));
        counter.unwrap_or(&series.other).inc();
        series.seconds.observe(took.as_secs_f64());
    }

    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "requests",
            "Requests of pods, by what they ask for and the status of the answer",
            self.total.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From a request's head to its answer, waiting for pods, roles and STS included",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }
}

/// The outcome of an STS call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StsOutcome {
    /// STS issued a session.
    Issued,
    /// STS refused the call.
    Denied,
    /// The API server refused a token.
    NoToken,
    /// STS or the API server could not be reached, or it was busy.
    Unavailable,
}

impl StsOutcome {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Issued, "issued"),
        (Self::Denied, "denied"),
        (Self::NoToken, "no_token"),
        (Self::Unavailable, "unavailable"),
    ];
}

/// Metrics of STS calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StsCalls {
    total: Family<Labels<1>, Counter>,
    seconds: Histogram,
}

impl Default for StsCalls {
    fn default() -> Self {
        let total: Family<Labels<1>, Counter> = Family::default();
        for (_, outcome) in StsOutcome::ALL {
            let _ = total.get_or_create_owned(&[("outcome", outcome)]);
        }
        Self {
            total,
            seconds: Histogram::new(STS_BUCKETS),
        }
    }
}

impl StsCalls {
    /// Counts a call that has ended.
    pub fn ended(&self, outcome: StsOutcome, took: Duration) {
        if let Some((_, outcome)) = StsOutcome::ALL.get(outcome as usize) {
            self.total.get_or_create(&[("outcome", *outcome)]).inc();
        }
        self.seconds.observe(took.as_secs_f64());
    }

    /// Adds the metrics to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("sts_calls", "STS calls, by outcome", self.total.clone());
        registry.register_with_unit(
            "sts_call_duration",
            "How long STS calls took, retries and tokens included",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }
}

/// The outcome of waiting for a turn of a rate limiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnOutcome {
    /// The turn came at once.
    Prompt,
    /// The turn came after a wait.
    Slowed,
    /// The turn did not come in time, or was not needed any more by then.
    GivenUp,
}

impl TurnOutcome {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Prompt, "prompt"),
        (Self::Slowed, "slowed"),
        (Self::GivenUp, "given_up"),
    ];
}

/// Counts turns by their outcome. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns(Family<Labels<1>, Counter>);

impl Default for Turns {
    fn default() -> Self {
        let total: Family<Labels<1>, Counter> = Family::default();
        for (_, outcome) in TurnOutcome::ALL {
            let _ = total.get_or_create_owned(&[("turn", outcome)]);
        }
        Self(total)
    }
}

impl Turns {
    /// Counts a turn.
    pub fn ended(&self, outcome: TurnOutcome) {
        if let Some((_, outcome)) = TurnOutcome::ALL.get(outcome as usize) {
            self.0.get_or_create(&[("turn", *outcome)]).inc();
        }
    }

    /// Returns the number of turns with this outcome.
    #[cfg(test)]
    pub fn count(&self, outcome: TurnOutcome) -> u64 {
        let label = TurnOutcome::ALL
            .get(outcome as usize)
            .map_or("", |(_, label)| label);
        self.0.get_or_create(&[("turn", label)]).get()
    }

    /// Adds the counts to a registry, as new sessions.
    pub fn register_sessions(&self, registry: &mut Registry) {
        let about =
            "New sessions of pods, by their pod's turn: given up are those that no pod had any more by then";
        registry.register("new_sessions", about, self.0.clone());
    }

    /// Adds the counts to a registry, as requests for the node's metadata.
    pub fn register_node_requests(&self, registry: &mut Registry) {
        let about = "Requests for the node's metadata, by their turn: given up are those that were answered 503 before it";
        registry.register("node_requests", about, self.0.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_outcomes_are_listed_in_the_order_of_their_variants() {
        for (index, (kind, _)) in RequestKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
        for (index, (outcome, _)) in StsOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
        for (index, (outcome, _)) in TurnOutcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
        }
    }
}
