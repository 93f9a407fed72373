//! For tests: an agent that has done nothing.

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;

use super::MetricSource;
use crate::credentials::Tally;
use crate::imds::server::Counts;

/// Its metrics.
pub struct NoMetrics;

impl MetricSource for NoMetrics {
    fn connections(&self) -> Counts {
        Counts::default()
    }
    fn kernel(&self, _counter: Counter) -> u64 {
        0
    }
    fn refusals(&self) -> Vec<crate::intercept::refusals::RefusalCount> {
        Vec::new()
    }

    fn guard(&self, _counter: GuardCounter) -> u64 {
        0
    }
    fn pods(&self) -> usize {
        0
    }
    fn sessions(&self) -> Tally {
        Tally::default()
    }
    fn register(&self, _registry: &mut Registry) {}
}
