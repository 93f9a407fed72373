//! Writes `/metrics` in the OpenMetrics text format. Labels have few and fixed values, except for those of refused
//! connections, which name a pod.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text::encode};
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
/// Errors of the encoder, which has none while it writes to memory.
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
        let one = ConstGauge::new(1_i64);
        encoder
            .encode_descriptor("build_info", "The version that runs", None, one.metric_type())?
            .encode_family(&[("version", env!("CARGO_PKG_VERSION"))])
            .and_then(|family| one.encode(family))?;
        let counter = ConstCounter::new(0_u64).metric_type();
        let mut family = encoder.encode_descriptor(
            "connections",
            "Connections that the agent accepted, by what came of them",
            None,
            counter,
        )?;
        for (outcome, count) in self.connections {
            ConstCounter::new(count).encode(family.encode_family(&[("outcome", outcome)])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "refused_connections",
            "Connections that were refused, or did not reach the agent, by kind and, if it is known, by pod",
            None,
            counter,
        )?;
        for refusal in &self.refusals {
            let (namespace, pod) = &refusal.pod;
            let labels = [
                ("kind", refusal.kind.label()),
                ("namespace", namespace),
                ("pod", pod),
            ];
            ConstCounter::new(refusal.count).encode(family.encode_family(&labels)?)?;
        }
        let mut family = encoder.encode_descriptor(
            "slowed",
            "Connections and requests that had to wait, as their pod makes more than it may",
            None,
            counter,
        )?;
        for (what, count) in self.slowed {
            ConstCounter::new(count).encode(family.encode_family(&[("what", what)])?)?;
        }
        let about = "Packets to the node's metadata service that the agent's own guard dropped";
        ConstCounter::new(self.dropped_packets).encode(encoder.encode_descriptor(
            "guard_dropped_packets",
            about,
            None,
            counter,
        )?)?;
        let mut family = encoder.encode_descriptor(
            "kernel_connections",
            "What the programs in the kernel did with connections to the metadata service",
            None,
            counter,
        )?;
        for (event, count) in &self.kernel {
            ConstCounter::new(*count).encode(family.encode_family(&[("event", *event)])?)?;
        }
        let gauge = one.metric_type();
        let pods = ConstGauge::new(self.pods);
        pods.encode(encoder.encode_descriptor("pods", "Pods of this node that are known", None, gauge)?)?;
        let ready = ConstGauge::new(i64::from(self.ready));
        ready.encode(encoder.encode_descriptor("ready", "Whether pods are served", None, gauge)?)?;
        self.encode_parts(&mut encoder)?;
        self.encode_sessions(&mut encoder)
    }
}

impl Snapshot {
    fn encode_parts(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(0_i64).metric_type();
        let about = "Whether a part of the agent does what serving pods takes";
        let mut family = encoder.encode_descriptor("part_serving", about, None, gauge)?;
        for part in &self.parts {
            let serves = ConstGauge::new(i64::from(part.serves));
            serves.encode(family.encode_family(&[("part", part.label)])?)?;
        }
        let about = "Whether a part of the agent is as it should be";
        let mut family = encoder.encode_descriptor("part_ok", about, None, gauge)?;
        for part in &self.parts {
            let is_fine = ConstGauge::new(i64::from(part.is_fine));
            is_fine.encode(family.encode_family(&[("part", part.label)])?)?;
        }
        let counter = ConstCounter::new(0_u64).metric_type();
        let about =
            "How often a part of the agent was as it should be and then was not: a watch that broke, for one";
        let mut family = encoder.encode_descriptor("part_troubles", about, None, counter)?;
        for part in &self.parts {
            let troubles = ConstCounter::new(part.troubles);
            troubles.encode(family.encode_family(&[("part", part.label)])?)?;
        }
        Ok(())
    }

    fn encode_sessions(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = ConstGauge::new(0_i64).metric_type();
        let about = "Pods of this node, by what comes of their role";
        let mut family = encoder.encode_descriptor("pod_verdicts", about, None, gauge)?;
        for (verdict, count) in &self.verdicts {
            let count = ConstGauge::new(i64::try_from(*count).unwrap_or(i64::MAX));
            count.encode(family.encode_family(&[("verdict", *verdict)])?)?;
        }
        let about = "Sessions: valid, failing (valid, but not renewed), failed (none, and STS gave none), fetching, idle (left to end)";
        let mut family = encoder.encode_descriptor("sessions", about, None, gauge)?;
        let SessionCounts {
            valid,
            failing,
            failed,
            fetching,
            idle,
            oldest,
            least_left,
        } = self.sessions;
        for (state, count) in [
            ("valid", valid),
            ("failing", failing),
            ("failed", failed),
            ("fetching", fetching),
            ("idle", idle),
        ] {
            let count = ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX));
            count.encode(family.encode_family(&[("state", state)])?)?;
        }
        let seconds = |time: Option<Duration>| ConstGauge::new(time.unwrap_or_default().as_secs_f64());
        let about = "The age of the oldest session that is renewed; 0 without one";
        let unit = Some(&Unit::Seconds);
        seconds(oldest).encode(encoder.encode_descriptor("session_oldest_age", about, unit, gauge)?)?;
        // Without a session there is no time to show: 0 would mean that one ends now.
        if least_left.is_some() {
            let about = "What is left of the session that ends first, of those that are renewed";
            seconds(least_left).encode(encoder.encode_descriptor(
                "session_least_left",
                about,
                unit,
                gauge,
            )?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
