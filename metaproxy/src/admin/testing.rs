//! Test doubles of an agent that has served no request and knows no pod.

use std::collections::BTreeMap;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;

use crate::credentials::SessionCounts;
use crate::explain::{Explanation, Verdict};
use crate::identify::Counts;
use crate::introspection::{DryRun, Introspection, MetricSource, Status};

/// Metrics that are all zero.
pub struct NoMetrics;

impl MetricSource for NoMetrics {
    fn connections(&self) -> Counts {
        Counts::default()
    }
    fn kernel(&self, _counter: Counter) -> u64 {
        0
    }
    fn refusals(&self) -> Vec<crate::identify::refusals::RefusalCount> {
        Vec::new()
    }
    fn guard(&self, _counter: GuardCounter) -> u64 {
        0
    }
    fn pods(&self) -> usize {
        0
    }
    fn sessions(&self) -> SessionCounts {
        SessionCounts::default()
    }
    fn register(&self, _registry: &mut Registry) {}
}

/// The introspection of an agent without pods.
pub struct NoPods;

impl Introspection for NoPods {
    fn explain(&self, _pod: Option<&str>) -> Vec<Explanation> {
        Vec::new()
    }
    fn dry_run(&self, _of: &Explanation) -> DryRun<'_> {
        Box::pin(std::future::ready(Vec::new()))
    }
    fn status(&self) -> Status {
        Status::default()
    }
    fn node_name(&self) -> Option<&str> {
        None
    }
    fn verdicts(&self) -> BTreeMap<Verdict, u64> {
        BTreeMap::new()
    }
}
