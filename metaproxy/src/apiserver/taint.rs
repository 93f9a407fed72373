//! The startup taint: new nodes are registered with it, so that no pod starts before this node's pods are served, and
//! the agent removes it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::{info, warn};

use super::{ApiServer, PATIENCE, within};
use crate::health::{Condition, Health, Part};

/// Waiting time after a first failure; doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(500);

/// Longest waiting time after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(10);

/// Removes the taint once pods are served. Never ends.
pub async fn remove(api: ApiServer, node: String, key: String, health: Health) {
    let (mut backoff, mut said) = (BACKOFF, String::new());
    loop {
        health.ready().await;
        match within(PATIENCE, try_to_remove(&api, &node, &key)).await {
            Ok(removed) => {
                if removed {
                    info!(%node, taint = %key, "removed the startup taint: pods are served");
                }
                health.set(Part::StartupTaint, Condition::Fine);
                (backoff, said) = (BACKOFF, String::new());
                // Whoever registers the node again taints it again.
                health.not_ready().await;
            }
            Err(error) => {
                let text = format!("taint {key} of node {node} cannot be removed: {error}");
                if text != said {
                    warn!("{text}");
                    said.clone_from(&text);
                }
                // Pods that are here are served; none that does not tolerate the taint comes.
                health.set(Part::StartupTaint, Condition::Degraded(text));
                tokio::time::sleep(backoff).await;
                backoff = backoff.saturating_mul(2).min(MAX_BACKOFF);
            }
        }
    }
}

/// Whether it was there. Others change taints too: what is written back stands only if nobody did meanwhile.
async fn try_to_remove(api: &ApiServer, node: &str, key: &str) -> Result<bool, kube::Error> {
    let nodes: Api<Node> = Api::all(api.client());
    let found = nodes.get(node).await?;
    let taints = found.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let left: Vec<_> = taints.iter().filter(|taint| taint.key != key).collect();
    if left.len() == taints.len() {
        return Ok(false);
    }
    let patch = json!({
        "metadata": { "resourceVersion": found.metadata.resource_version },
        "spec": { "taints": left },
    });
    // A merge patch: lists are replaced whole.
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(&patch))
        .await?;
    Ok(true)
}
