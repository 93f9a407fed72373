//! What the agent does in a cluster, beside following its pods.

use super::tasks::Tasks;
use crate::apiserver::access::{self, Uses};
use crate::apiserver::events::{self, Refusals};
use crate::apiserver::trial::AudienceLimit;
use crate::apiserver::{ApiServer, taint};
use crate::pods::Pods;
use crate::roles::Rules;
use crate::telemetry::health::{Condition, Health, Part};

/// The cluster that this node is part of.
#[derive(Clone)]
pub(super) struct Cluster {
    pub api: ApiServer,
    pub node: String,
    pub startup_taint: Option<String>,
}

impl Cluster {
    /// Starts the task that reports refusals to pods' owners as events, and returns the way to it.
    pub fn report_events(&self, tasks: &mut Tasks, pods: Pods) -> Refusals {
        let (refusals, told) = events::channel();
        tasks.spawn(
            "events",
            events::tell(self.api.clone(), self.node.clone(), pods, told),
        );
        refusals
    }

    /// Looks after permissions, the limit of tokens if one is required, and the taint.
    pub fn attend(
        &self,
        tasks: &mut Tasks,
        rules: &Rules,
        limit: Option<AudienceLimit>,
        pods: Pods,
        health: &Health,
    ) {
        let uses = Uses {
            namespaces: !rules.kept().namespaces.is_empty(),
            service_accounts: rules.web_identity,
            startup_taint: self.startup_taint.is_some(),
        };
        let permissions = access::watch(self.api.clone(), uses, limit, pods, health.clone());
        tasks.spawn("permissions", permissions);
        if let Some(taint) = &self.startup_taint {
            let (api, node) = (self.api.clone(), self.node.clone());
            health.set(
                Part::StartupTaint,
                Condition::Degraded(format!("{taint} is removed when pods are served")),
            );
            tasks.spawn(
                "startup-taint",
                taint::remove(api, node, taint.clone(), health.clone()),
            );
        }
    }
}
