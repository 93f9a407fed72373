//! For tests: an agent that has done nothing.

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;

use super::Sources;
use crate::credentials::SessionCounts;
use crate::imds::server::Counts;

/// Its figures.
pub struct Nothing;

impl Sources for Nothing {
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
    fn sessions(&self) -> SessionCounts {
        SessionCounts::default()
    }
    fn register(&self, _registry: &mut Registry) {}
}
