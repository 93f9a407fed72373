//! Checks the agent's permissions at the API server. It tries them with the account of this process, and asks a
//! running agent.

use super::{Examination, Finding};
use crate::admin::client;
use crate::apiserver::ApiServer;
use crate::apiserver::permissions::{Features, denied};
use crate::apiserver::token_trial::{self, TokenTrial};
use crate::credentials::token_subjects;
use crate::introspection::Status;
use crate::pods::kubernetes::pods_of_node;
use crate::telemetry::health::Part;

const CHECK: &str = "API server";
const TOKENS_CHECK: &str = "tokens";

const LIMITS_ADVICE: &str = "on Kubernetes 1.30 and later the chart limits that (webIdentity.admissionPolicy); are the policy and its binding \
                      there? See deploy/docs/iam.md#how-far-that-right-goes";

const RIGHTS_ADVICE: &str = "the chart's ClusterRole grants exactly what is needed; is its binding there?";

pub(super) async fn examine(examination: &Examination) -> Vec<Finding> {
    let agent = client::status(&examination.runtime_dir).ok();
    let mut findings = agent.as_ref().map(parts_in_trouble).unwrap_or_default();
    match &examination.kubeconfig {
        Some(kubeconfig) => match ApiServer::open(kubeconfig).await {
            Ok(api) => findings.extend(tried(&api, examination).await),
            Err(error) => findings.push(unreachable(&error.to_string())),
        },
        None if findings.is_empty() && agent.as_ref().is_some_and(has_api_server) => {
            findings.push(Finding::ok(CHECK, "the agent that runs has what it needs of it"));
        }
        None => {}
    }
    findings
}

/// Reports whether the agent uses an API server. An agent that reads manifests needs none.
fn has_api_server(agent: &Status) -> bool {
    let permissions = Part::Permissions.label();
    agent.parts.iter().any(|part| part.part == permissions)
}

fn parts_in_trouble(agent: &Status) -> Vec<Finding> {
    if !has_api_server(agent) {
        return Vec::new();
    }
    let asked = [
        Part::Pods,
        Part::Namespaces,
        Part::ServiceAccounts,
        Part::Permissions,
    ]
    .map(Part::label);
    let parts = agent
        .parts
        .iter()
        .filter(|part| asked.contains(&part.part.as_str()));
    let bad = parts.filter(|part| part.condition != "ok").map(|part| {
        let says = format!(
            "the agent says of {}: {}",
            part.part,
            part.detail.as_deref().unwrap_or_default()
        );
        let advice = format!("{RIGHTS_ADVICE} And is the API server?");
        if part.condition == "failed" {
            Finding::problem(CHECK, says, advice)
        } else {
            Finding::warning(CHECK, says, advice)
        }
    });
    bad.collect()
}

fn unreachable(error: &str) -> Finding {
    Finding::problem(
        CHECK,
        format!("cannot be asked: {error}"),
        "without it pods are served by what is remembered of them; see --kubeconfig, and the NO_PROXY of this process",
    )
}

async fn tried(api: &ApiServer, examination: &Examination) -> Vec<Finding> {
    let features = Features {
        namespaces: examination.namespaces,
        service_accounts: examination.web_identity,
        startup_taint: examination.startup_taint,
    };
    let denied = match denied(api, &features.permissions()).await {
        Ok(denied) => denied,
        Err(error) => return vec![unreachable(&error)],
    };
    if denied.is_empty() {
        let mut findings = vec![Finding::ok(CHECK, "reached, and everything needed is allowed")];
        if let (true, Some(node)) = (examination.web_identity, &examination.node) {
            findings.extend(tokens(api, node, examination.token_policy_required).await);
        }
        return findings;
    }
    let list: Vec<String> = denied.iter().map(ToString::to_string).collect();
    let says = format!("this account may not {}", list.join(", nor "));
    vec![if denied.iter().any(|permission| permission.is_required) {
        Finding::problem(CHECK, says, RIGHTS_ADVICE)
    } else {
        Finding::warning(CHECK, says, RIGHTS_ADVICE)
    }]
}

/// Tries to make a token for a pod of this node, and one that a policy should refuse. Both are dry runs (`dryRun`).
async fn tokens(api: &ApiServer, node: &str, is_limit_required: bool) -> Vec<Finding> {
    let pods = pods_of_node(api, node).await.unwrap_or_default();
    let subjects = token_subjects::among(&pods);
    let Some(subject) = subjects.first() else {
        let says = format!("not tried: node {node} has no pod that a token could be for");
        return vec![Finding::ok(TOKENS_CHECK, says)];
    };
    match token_trial::try_tokens(api, &subjects).await {
        TokenTrial::Refused(why) => {
            let advice =
                "RBAC allows it; see what admission policies and webhooks say of serviceaccounts/token";
            return vec![Finding::problem(
                TOKENS_CHECK,
                format!("none is given for pods of this node: {why}"),
                advice,
            )];
        }
        TokenTrial::Unknown => {
            return vec![Finding::ok(
                TOKENS_CHECK,
                "not tried: the API server does not say",
            )];
        }
        TokenTrial::Given => {}
    }
    match token_trial::try_foreign_audience(api, subject).await {
        TokenTrial::Given if is_limit_required => {
            vec![Finding::problem(
                TOKENS_CHECK,
                format!("the agent asks for none: {}", token_trial::NO_AUDIENCE_LIMIT),
                LIMITS_ADVICE,
            )]
        }
        TokenTrial::Given => vec![Finding::warning(
            TOKENS_CHECK,
            "this account is given tokens of every service account for any audience: an attacker who takes a node can act as any \
             service account of the cluster",
            LIMITS_ADVICE,
        )],
        TokenTrial::Refused(_) | TokenTrial::Unknown => vec![Finding::ok(
            TOKENS_CHECK,
            "tried without making one: given for STS, and for no other audience",
        )],
    }
}
