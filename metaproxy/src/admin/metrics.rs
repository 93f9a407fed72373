//! Writes `/metrics` in the OpenMetrics text format. Labels have a small, fixed set of values, except for the labels
//! of refused connections, which name a pod.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, text::encode};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::credentials::SessionCounts;
use crate::explain::Verdict;
use crate::identify::refusals::RefusalCount;
use crate::introspection::MetricSource;
use crate::telemetry::health::{Condition, Health};

/// The content type of the OpenMetrics text format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all metrics.
///
/// # Errors
/// Returns an error of the encoder. None occurs, because the encoder writes to memory.
pub fn text(
    source: &dyn MetricSource,
    health: &Health,
    verdicts: &BTreeMap<Verdict, u64>,
) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("metaproxy");
    registry.register_collector(Box::new(Snapshot::take(source, health, verdicts)));
    source.register(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    connections: [(&'static str, u64); 3],
    refusals: Vec<RefusalCount>,
    slowed: [(&'static str, u64); 2],
    dropped_packets: u64,
    kernel: Vec<(&'static str, u64)>,
    pods: i64,
    ready: bool,
    parts: Vec<PartState>,
    sessions: SessionCounts,
    verdicts: Vec<(&'static str, u64)>,
}

#[derive(Debug)]
struct PartState {
    label: &'static str,
    serves: bool,
    is_fine: bool,
    troubles: u64,
}

impl Snapshot {
    fn take(source: &dyn MetricSource, health: &Health, verdicts: &BTreeMap<Verdict, u64>) -> Self {
        let counts = source.connections();
        let kernel = Counter::ALL
            .iter()
            .map(|counter| (counter.label(), source.kernel(*counter)))
            .collect();
        let parts = health.parts();
        let parts = parts.iter().map(|(part, condition)| PartState {
            label: part.label(),
            serves: condition.serves(),
            is_fine: *condition == Condition::Fine,
            troubles: health.troubles(*part),
        });
        let verdict = |verdict: &Verdict| {
            (
                verdict.metric(),
                verdicts.get(verdict).copied().unwrap_or_default(),
            )
        };
        Self {
            connections: [
                ("served", counts.served),
                ("unidentified", counts.unidentified),
                ("over_limit", counts.over_limit),
            ],
            refusals: source.refusals(),
            slowed: [
                ("connection", counts.slowed_connections),
                ("request", counts.slowed_requests),
            ],
            dropped_packets: source.guard(GuardCounter::Packets),
            kernel,
            pods: i64::try_from(source.pods()).unwrap_or(i64::MAX),
            ready: health.is_ready(),
            parts: parts.collect(),
            sessions: source.sessions(),
            verdicts: Verdict::ALL.iter().map(verdict).collect(),
        }
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        self.encode_agent(encoder)?;
        self.encode_connections(encoder)?;
        self.encode_parts(encoder)?;
        self.encode_sessions(encoder)
    }
}

impl Snapshot {
    fn encode_agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let version = [(env!("CARGO_PKG_VERSION"), 1)];
        gauges(encoder, "build_info", "The version that runs", "version", version)?;
        gauge(encoder, "pods", "Pods of this node that are known", self.pods)?;
        gauge(encoder, "ready", "Whether pods are served", i64::from(self.ready))
    }

    fn encode_connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let about = "Connections that the agent accepted, by outcome";
        counters(encoder, "connections", about, "outcome", self.connections)?;
        let about =
            "Connections that were refused, or did not reach the agent, by kind and, if it is known, by pod";
        let kind = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor("refused_connections", about, None, kind)?;
        for refusal in &self.refusals {
            let (namespace, pod) = &refusal.pod;
            let labels = [
                ("kind", refusal.kind.label()),
                ("namespace", namespace),
                ("pod", pod),
            ];
            ConstCounter::new(refusal.count).encode(family.encode_family(&labels)?)?;
        }
        let about = "Connections and requests that had to wait, because their pod exceeds its limits";
        counters(encoder, "slowed", about, "what", self.slowed)?;
        let about = "Packets to the node's metadata service that the agent's own guard dropped";
        let dropped = ConstCounter::new(self.dropped_packets);
        dropped.encode(encoder.encode_descriptor("guard_dropped_packets", about, None, kind)?)?;
        let about = "Connections to the metadata service, by what the programs in the kernel did with them";
        let kernel = self.kernel.iter().copied();
        counters(encoder, "kernel_connections", about, "event", kernel)
    }

    fn encode_parts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let parts = self.parts.iter();
        let serving = parts.clone().map(|part| (part.label, i64::from(part.serves)));
        let about = "Whether a part of the agent does what is needed to serve pods";
        gauges(encoder, "part_serving", about, "part", serving)?;
        let fine = parts.clone().map(|part| (part.label, i64::from(part.is_fine)));
        let about = "Whether a part of the agent has no trouble";
        gauges(encoder, "part_ok", about, "part", fine)?;
        let troubles = parts.map(|part| (part.label, part.troubles));
        let about = "How often a part of the agent got into trouble, such as a watch that broke";
        counters(encoder, "part_troubles", about, "part", troubles)
    }

    fn encode_sessions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let about = "Pods of this node, by the outcome of their role";
        let verdicts = self
            .verdicts
            .iter()
            .map(|(verdict, count)| (*verdict, signed(*count)));
        gauges(encoder, "pod_verdicts", about, "verdict", verdicts)?;
        let SessionCounts {
            valid,
            failing,
            failed,
            fetching,
            idle,
            oldest,
            least_left,
        } = self.sessions;
        let states = [
            ("valid", signed(valid)),
            ("failing", signed(failing)),
            ("failed", signed(failed)),
            ("fetching", signed(fetching)),
            ("idle", signed(idle)),
        ];
        let about = "Sessions: valid, failing (valid, but not renewed), failed (none, and STS gave none), fetching, idle (left to end)";
        gauges(encoder, "sessions", about, "state", states)?;
        let about = "The age of the oldest session that is renewed; 0 without one";
        seconds(encoder, "session_oldest_age", about, oldest.unwrap_or_default())?;
        // Without a session there is no remaining time to report. The value 0 would mean that a session ends now.
        let Some(least_left) = least_left else {
            return Ok(());
        };
        let about = "What is left of the session that ends first, of those that are renewed";
        seconds(encoder, "session_least_left", about, least_left)
    }
}

fn signed<T: TryInto<i64>>(count: T) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

/// Writes counters that differ in one label.
fn counters<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    label: &str,
    counts: impl IntoIterator<Item = (&'a str, u64)>,
) -> fmt::Result {
    let counts = counts
        .into_iter()
        .map(|(value, count)| (value, ConstCounter::new(count)));
    labelled(
        encoder,
        name,
        about,
        label,
        ConstCounter::new(0_u64).metric_type(),
        counts,
    )
}

/// Writes gauges that differ in one label.
fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    label: &str,
    values: impl IntoIterator<Item = (&'a str, i64)>,
) -> fmt::Result {
    let values = values
        .into_iter()
        .map(|(value, number)| (value, ConstGauge::new(number)));
    labelled(
        encoder,
        name,
        about,
        label,
        ConstGauge::new(0_i64).metric_type(),
        values,
    )
}

fn labelled<'a, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    about: &str,
    label: &str,
    kind: MetricType,
    metrics: impl IntoIterator<Item = (&'a str, M)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, about, None, kind)?;
    for (value, metric) in metrics {
        metric.encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, about: &str, value: i64) -> fmt::Result {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, about, None, gauge.metric_type())?)
}

fn seconds(encoder: &mut DescriptorEncoder<'_>, name: &str, about: &str, time: Duration) -> fmt::Result {
    let gauge = ConstGauge::new(time.as_secs_f64());
    gauge.encode(encoder.encode_descriptor(name, about, Some(&Unit::Seconds), gauge.metric_type())?)
}

#[cfg(test)]
mod tests;
