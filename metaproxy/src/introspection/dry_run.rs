//! Answers the requests of a pod by a dry run. Only a description of each answer leaves this module, and no secret.

use std::sync::Arc;

use hyper::StatusCode;

use super::live_agent::{LiveAgent, caller_uid};
use crate::credentials::Issuer;
use crate::explain::AnswerLine;
use crate::identify::Client;
use crate::imds::outcome::Outcome;
use crate::imds::response;
use crate::pods::{Known, PodUid};

/// The path that lists the name of a pod's role.
pub(super) const LIST: &str = "/latest/meta-data/iam/security-credentials/";

impl<I: Issuer> LiveAgent<I> {
    /// Returns the answers that the pod with a UID would get.
    pub(super) async fn answers(&self, uid: &PodUid) -> Vec<AnswerLine> {
        // Each lock is released before the next is taken, because decisions take them in another order.
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        // If several pods have one UID, a request cannot be attributed to one of them.
        let Some(Known::Pod(pod)) = inventory.by_uid(uid) else {
            return Vec::new();
        };
        if pod.finished {
            return Vec::new();
        }
        let of_the_node = |why: &str| AnswerLine {
            path: LIST.to_owned(),
            status: 200,
            says: format!("what the node's own metadata service says: {why}"),
        };
        let Some(serving) = &self.serving else {
            return vec![of_the_node(
                "pods are only observed (--mode observe), and the verdict is what --mode enforce would make of it",
            )];
        };
        if pod.host_network && !rules.intercepts_host_pod(pod, inventory.service_account(pod)) {
            return vec![of_the_node("a hostNetwork pod without a role is not intercepted")];
        }
        let client = Client {
            uid: caller_uid(pod).clone(),
        };
        let ask = async |path: String| {
            let answer = serving.handler.dry_run(&client, &path).await;
            line(path, &answer.outcome)
        };
        let list = ask(LIST.to_owned()).await;
        let role = Some(&list)
            .filter(|list| list.status == StatusCode::OK.as_u16())
            .map(|list| format!("{LIST}{}", list.says));
        let mut answers = Vec::new();
        if serving.handler.requires_tokens() {
            answers.push(AnswerLine {
                path: format!("{LIST} (without a session token)"),
                status: StatusCode::UNAUTHORIZED.as_u16(),
                says: "a request needs a session token here, as IMDSv2 has it; with one:".to_owned(),
            });
        }
        answers.push(list);
        if let Some(path) = role {
            answers.push(ask(path).await);
        }
        answers
    }
}

/// Describes an outcome.
pub(super) fn line(path: String, outcome: &Outcome) -> AnswerLine {
    AnswerLine {
        path,
        status: response::status(outcome).as_u16(),
        says: outcome.summary(),
    }
}
