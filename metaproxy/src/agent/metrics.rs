//! Collects the agent's metrics from its parts.

use std::sync::Arc;

use metaproxy_common::layout::{Counter, GuardCounter};
use prometheus_client::registry::Registry;

use super::interception::ServiceParts;
use crate::credentials::SessionCounts;
use crate::identify::Counts;
use crate::identify::refusals::RefusalCount;
use crate::intercept::guard::GuardCounters;
use crate::intercept::programs::Counters;
use crate::introspection::MetricSource;
use crate::pods::Pods;

/// The source of an agent's metrics. A part that the agent does not have counts as zero.
pub(super) struct AgentMetrics {
    pub counters: Arc<Counters>,
    pub guard: Option<GuardCounters>,
    pub pods: Pods,
    /// `None` while pods are only observed.
    pub service: Option<ServiceParts>,
}

impl MetricSource for AgentMetrics {
    fn connections(&self) -> Counts {
        self.service
            .as_ref()
            .map_or_else(Counts::default, |service| service.server.acceptor().counts())
    }

    fn refusals(&self) -> Vec<RefusalCount> {
        self.service
            .as_ref()
            .map_or_else(Vec::new, |service| service.server.acceptor().refusals().counts())
    }

    fn guard(&self, counter: GuardCounter) -> u64 {
        self.guard.as_ref().map_or(0, |guard| guard.total(counter))
    }

    /// Returns a kernel counter without the agent's checks of its own listeners.
    fn kernel(&self, counter: Counter) -> u64 {
        let checks = self
            .service
            .as_ref()
            .map_or(0, |service| service.server.acceptor().checks().counted(counter));
        self.counters.total(counter).saturating_sub(checks)
    }

    fn pods(&self) -> usize {
        self.pods.borrow().len()
    }

    fn sessions(&self) -> SessionCounts {
        self.service
            .as_ref()
            .map_or_else(SessionCounts::default, |service| service.sessions.counts())
    }

    fn register(&self, registry: &mut Registry) {
        let Some(ServiceParts { server, sessions, .. }) = &self.service else {
            return;
        };
        let connections = server.connections();
        connections.metrics().register(registry);
        let node_requests = connections.handler().passthrough().turns();
        node_requests.register_node_requests(registry);
        sessions.calls().register(registry);
        sessions.turns().register_sessions(registry);
    }
}
