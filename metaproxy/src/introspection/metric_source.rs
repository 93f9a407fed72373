//! Defines the values that metrics and the status read from a running agent.

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;

use crate::credentials::SessionCounts;
use crate::identify::Counts;
use crate::identify::refusals::RefusalCount;

/// Gives the values of metrics at the moment of a scrape.
pub trait MetricSource: Send + Sync {
    /// Returns the counts of accepted connections.
    fn connections(&self) -> Counts;
    /// Returns the counts of connections that were refused or did not reach the agent.
    fn refusals(&self) -> Vec<RefusalCount>;
    /// Returns a counter of the programs in the kernel.
    fn kernel(&self, counter: Counter) -> u64;
    /// Returns a counter of the agent's own guard, or 0 if it has none.
    fn guard(&self, counter: GuardCounter) -> u64;
    /// Returns the number of known pods.
    fn pods(&self) -> usize;
    /// Returns the counts of sessions.
    fn sessions(&self) -> SessionCounts;
    /// Registers the metrics that exist only while pods are served.
    fn register(&self, registry: &mut Registry);
}
