//! The startup taint: new nodes are registered with it, so that no pod starts before this node's pods are served, and
//! the agent removes it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::{info, warn};

use super::{ApiServer, REQUEST_TIMEOUT, with_timeout};
use crate::telemetry::health::{Condition, Health, Part};

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
        match with_timeout(REQUEST_TIMEOUT, try_to_remove(&api, &node, &key)).await {
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde_json::Value;

    use super::*;

    const KEY: &str = "metaproxy/agent-not-ready";

    fn node(keys: &[&str]) -> Value {
        let taints: Vec<Value> = keys
            .iter()
            .map(|key| json!({ "key": key, "effect": "NoSchedule" }))
            .collect();
        json!({ "metadata": { "name": "node1", "resourceVersion": "7" }, "spec": { "taints": taints } })
    }

    #[tokio::test(start_paused = true)]
    async fn a_taint_that_is_put_back_is_removed_and_a_node_without_it_is_seldom_looked_at() {
        let state = Arc::new(Mutex::new((node(&["other", KEY]), 0_usize)));
        let shown = Arc::clone(&state);
        let api = ApiServer::fake(move |method, _, body| {
            let mut state = shown.lock().unwrap();
            if method == "PATCH" {
                assert_eq!(body["metadata"]["resourceVersion"], "7");
                state.0["spec"]["taints"] = body["spec"]["taints"].clone();
            } else {
                state.1 += 1;
            }
            (200, state.0.clone())
        });
        let taints = || state.lock().unwrap().0["spec"]["taints"].clone();
        let health = Health::starting([]);
        tokio::spawn(remove(api, "node1".to_owned(), KEY.to_owned(), health));
        for _ in 0..3 {
            tokio::time::sleep(2 * RECHECK_INTERVAL).await;
            assert_eq!(taints(), node(&["other"])["spec"]["taints"]);
            state.lock().unwrap().0 = node(&["other", KEY]);
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        let before = state.lock().unwrap().1;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let looks = state.lock().unwrap().1 - before;
        assert!((12..=17).contains(&looks), "{looks} looks in an hour");
    }
}
