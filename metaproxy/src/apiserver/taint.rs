//! Removes the startup taint. New nodes are registered with it, so that no pod starts before this node's pods are
//! served.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tracing::{info, warn};

use super::{ApiServer, REQUEST_TIMEOUT, with_timeout};
use crate::telemetry::health::{Condition, Health, Part};

/// The pauses before retries after failures.
const RETRY_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(Duration::from_secs(10))
    .without_max_times();

/// The first pause before the node is checked again after it was free of the taint. If a taint was removed before a
/// provisioner had seen the node, the provisioner adds it again, usually within seconds (Karpenter registers a node
/// with its startup taints).
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The maximum time between two checks. Each check is one request, so 5,000 nodes send 17 requests per second.
const MAX_RECHECK_INTERVAL: Duration = Duration::from_secs(300);

/// The pauses between checks that find the node free of the taint.
const RECHECK_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(RECHECK_INTERVAL)
    .with_max_delay(MAX_RECHECK_INTERVAL)
    .without_max_times();

/// Removes the taint once pods are served, and again when it is added again. Never returns.
pub async fn remove(api: ApiServer, node: String, key: String, health: Health) {
    let (mut retry, mut recheck) = (RETRY_BACKOFF.build(), RECHECK_BACKOFF.build());
    let mut reported = String::new();
    loop {
        health.ready().await;
        let pause = match with_timeout(REQUEST_TIMEOUT, try_to_remove(&api, &node, &key)).await {
            Ok(removed) => {
                if removed {
                    info!(%node, taint = %key, "removed the startup taint: pods are served");
                    recheck = RECHECK_BACKOFF.build();
                }
                health.set(Part::StartupTaint, Condition::Fine);
                (retry, reported) = (RETRY_BACKOFF.build(), String::new());
                // The pause has jitter, so that nodes that started together do not send requests together. Both
                // iterators never end.
                recheck
                    .next()
                    .map(|pause| pause.mul_f64(0.75 + 0.25 * fastrand::f64()))
            }
            Err(error) => {
                let text = format!("taint {key} of node {node} cannot be removed: {error}");
                if text != reported {
                    warn!("{text}");
                    reported.clone_from(&text);
                }
                // This is only a degradation: pods of the node are served, but new pods without a toleration are not
                // scheduled on it.
                health.set(Part::StartupTaint, Condition::Degraded(text));
                retry.next()
            }
        };
        tokio::time::sleep(pause.unwrap_or(MAX_RECHECK_INTERVAL)).await;
    }
}

/// Removes the taint, and returns whether the node had it. Other clients change taints too, so the patch names the
/// version that was read. The API server refuses the patch if the node has changed since.
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
    // A merge patch replaces lists as a whole (RFC 7386).
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
    async fn a_taint_that_is_added_again_is_removed_and_a_node_without_it_is_rarely_checked() {
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
