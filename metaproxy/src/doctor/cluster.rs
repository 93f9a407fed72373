//! The API server, and what the agent may do there.

use super::{Examination, Finding};
use crate::admin::asking;
use crate::apiserver::ApiServer;
use crate::apiserver::access::{Uses, denied};

pub(super) async fn examine(examination: &Examination) -> Vec<Finding> {
    const CHECK: &str = "API server";
    // One that runs knows what it needs, and has asked.
    if let Ok(status) = asking::status(&examination.runtime_dir) {
        let asked = ["pods", "namespaces", "service-accounts", "permissions"];
        let parts = status
            .parts
            .iter()
            .filter(|part| asked.contains(&part.part.as_str()));
        let bad = parts.filter(|part| part.condition != "ok").map(|part| {
            let says = format!("the agent says of {}: {}", part.part, part.detail.as_deref().unwrap_or_default());
            let advice = "the chart's ClusterRole grants exactly what is needed; is its binding there, and is the API server?";
            if part.condition == "failed" {
                Finding::problem(CHECK, says, advice)
            } else {
                Finding::warning(CHECK, says, advice)
            }
        });
        let bad: Vec<Finding> = bad.collect();
        return if bad.is_empty() {
            vec![Finding::ok(CHECK, "the agent that runs has what it needs of it")]
        } else {
            bad
        };
    }
    let Some(kubeconfig) = &examination.kubeconfig else {
        return Vec::new();
    };
    let unreachable = |error: String| {
        vec![Finding::problem(
            CHECK,
            format!("cannot be asked: {error}"),
            "without it pods are served by what is remembered of them; see --kubeconfig, and the NO_PROXY of this process",
        )]
    };
    let api = match ApiServer::open(kubeconfig).await {
        Ok(api) => api,
        Err(error) => return unreachable(error.to_string()),
    };
    let uses = Uses {
        namespaces: examination.namespaces,
        service_accounts: examination.web_identity,
        startup_taint: examination.startup_taint,
    };
    match denied(&api, &uses.permissions()).await {
        Err(error) => unreachable(error),
        Ok(denied) if denied.is_empty() => {
            vec![Finding::ok(CHECK, "reached, and everything needed is allowed")]
        }
        Ok(denied) => {
            let list: Vec<String> = denied.iter().map(ToString::to_string).collect();
            let says = format!("this account may not {}", list.join(", nor "));
            let advice = "the chart's ClusterRole grants exactly what is needed; is its binding there?";
            vec![if denied.iter().any(|permission| permission.is_vital) {
                Finding::problem(CHECK, says, advice)
            } else {
                Finding::warning(CHECK, says, advice)
            }]
        }
    }
}
