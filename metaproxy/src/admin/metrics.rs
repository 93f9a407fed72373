//! `/metrics`, in the OpenMetrics text format. Labels are few and fixed.

use std::fmt;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::health::Health;
use crate::imds::server::Counts;

/// What scrapers take it for.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where the figures come from, at the moment of asking.
pub trait Sources: Send + Sync {
    /// What came of connections so far.
    fn connections(&self) -> Counts;
    /// A counter of the programs in the kernel.
    fn kernel(&self, counter: Counter) -> u64;
    /// A counter of the agent's guard.
    fn guard(&self, counter: GuardCounter) -> u64;
    /// Pods that are known.
    fn pods(&self) -> usize;
}

/// All metrics.
///
/// # Errors
/// Those of the encoder, which has none where it writes to memory.
pub fn text(sources: &dyn Sources, health: &Health) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("metaproxy");
    registry.register_collector(Box::new(Snapshot::take(sources, health)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot {
    connections: [(&'static str, u64); 3],
    slowed: [(&'static str, u64); 2],
    dropped_packets: u64,
    kernel: Vec<(&'static str, u64)>,
    pods: i64,
    ready: bool,
    parts: Vec<(&'static str, bool)>,
}

impl Snapshot {
    fn take(sources: &dyn Sources, health: &Health) -> Self {
        let counts = sources.connections();
        let kernel = Counter::ALL
            .iter()
            .map(|counter| (counter.label(), sources.kernel(*counter)))
            .collect();
        let parts = health.parts();
        let parts = parts
            .iter()
            .map(|(part, condition)| (part.label(), condition.serves()));
        Self {
            connections: [
                ("served", counts.served),
                ("unidentified", counts.unidentified),
                ("over_limit", counts.over_limit),
            ],
            slowed: [
                ("connection", counts.slowed_connections),
                ("request", counts.slowed_requests),
            ],
            dropped_packets: sources.guard(GuardCounter::Packets),
            kernel,
            pods: i64::try_from(sources.pods()).unwrap_or(i64::MAX),
            ready: health.is_ready(),
            parts: parts.collect(),
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
        let mut family = encoder.encode_descriptor(
            "part_serving",
            "Whether a part of the agent does what serving pods takes",
            None,
            gauge,
        )?;
        for (part, serves) in &self.parts {
            ConstGauge::new(i64::from(*serves)).encode(family.encode_family(&[("part", *part)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Condition, Part};

    struct Fixed;

    impl Sources for Fixed {
        fn connections(&self) -> Counts {
            Counts {
                served: 7,
                unidentified: 2,
                over_limit: 4,
                slowed_connections: 5,
                slowed_requests: 6,
            }
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
    }

    #[test]
    fn what_is_told_has_these_names() {
        let health = Health::starting([Part::Pods, Part::Interception]);
        health.set(Part::Pods, Condition::Fine);
        let text = text(&Fixed, &health).unwrap();
        for line in [
            concat!(
                "metaproxy_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "metaproxy_connections_total{outcome=\"served\"} 7",
            "metaproxy_connections_total{outcome=\"unidentified\"} 2",
            "metaproxy_connections_total{outcome=\"over_limit\"} 4",
            "metaproxy_slowed_total{what=\"connection\"} 5",
            "metaproxy_slowed_total{what=\"request\"} 6",
            "metaproxy_guard_dropped_packets_total 8",
            "metaproxy_pods 3",
            "metaproxy_ready 0",
            "metaproxy_part_serving{part=\"interception\"} 0",
            "metaproxy_part_serving{part=\"pods\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert_eq!(
            text.matches("metaproxy_kernel_connections_total{").count(),
            Counter::ALL.len()
        );
    }
}
