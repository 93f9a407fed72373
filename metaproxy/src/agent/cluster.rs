//! Starts the agent's cluster tasks, except for the task that follows the pods.

use k8s_openapi::api::core::v1::ObjectReference;

use super::tasks::Tasks;
use crate::apiserver::events;
use crate::apiserver::permissions::{self, Features};
use crate::apiserver::token_trial::AudienceLimit;
use crate::apiserver::{ApiServer, taint};
use crate::credentials::token_subjects;
use crate::pods::{Known, Pod, Pods};
use crate::roles::Rules;
use crate::telemetry::health::{Condition, Health, Part};
use crate::telemetry::pod_event::{self, PodEventSender};

/// The cluster that this node is part of.
#[derive(Clone)]
pub(super) struct Cluster {
    pub api: ApiServer,
    pub node: String,
    pub startup_taint: Option<String>,
}

impl Cluster {
    /// Starts the task that publishes events on pods, and returns its queue.
    pub fn report_events(&self, tasks: &mut Tasks, pods: Pods) -> PodEventSender {
        let (sender, receiver) = pod_event::channel();
        let find = move |uid: &str| match pods.borrow().by_uid(&uid.parse().ok()?)? {
            Known::Pod(pod) => Some(reference(pod)),
            Known::Ambiguous(_) => None,
        };
        let publishing = events::publish(self.api.clone(), self.node.clone(), receiver, find);
        tasks.spawn("events", publishing);
        sender
    }

    /// Starts the tasks that watch the agent's permissions, watch the audience limit of tokens, and remove the
    /// startup taint.
    pub fn attend(
        &self,
        tasks: &mut Tasks,
        rules: &Rules,
        limit: Option<AudienceLimit>,
        pods: Pods,
        health: &Health,
    ) {
        let features = Features {
            namespaces: !rules.kept().namespaces.is_empty(),
            service_accounts: rules.web_identity,
            startup_taint: self.startup_taint.is_some(),
        };
        let subjects = move || token_subjects::of_node(&pods.borrow());
        let permissions = permissions::watch(self.api.clone(), features, limit, subjects, health.clone());
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

fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}
