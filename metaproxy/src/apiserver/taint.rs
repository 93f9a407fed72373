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

/// When the node is looked at again after it was free of the taint; doubles with each look that finds it free. Provisioners put
/// a taint back that was gone before they had seen the node (Karpenter registers a node with its startup taints), most of them
/// within seconds.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest time between two looks: one request of each node. 5,000 nodes ask 17 times a second.
const MAX_RECHECK_INTERVAL: Duration = Duration::from_secs(300);

/// Removes the taint once pods are served, and whenever it is put back. Never ends.
pub async fn remove(api: ApiServer, node: String, key: String, health: Health) {
    let (mut backoff, mut recheck, mut said) = (BACKOFF, RECHECK_INTERVAL, String::new());
    loop {
        health.ready().await;
        match within(PATIENCE, try_to_remove(&api, &node, &key)).await {
            Ok(removed) => {
                if removed {
                    info!(%node, taint = %key, "removed the startup taint: pods are served");
                    recheck = RECHECK_INTERVAL;
                }
                health.set(Part::StartupTaint, Condition::Fine);
                (backoff, said) = (BACKOFF, String::new());
                tokio::time::sleep(recheck.mul_f64(0.75 + 0.25 * fastrand::f64())).await;
                recheck = recheck.saturating_mul(2).min(MAX_RECHECK_INTERVAL);
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
