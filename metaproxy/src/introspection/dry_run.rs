//! What a pod is answered right now, by asking for it in its place. Nothing secret leaves here.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full};
use hyper::{Response, StatusCode};

use super::live_agent::{LiveAgent, caller_uid};
use crate::credentials::Issuer;
use crate::explain::AnswerLine;
use crate::imds::server::Server;
use crate::imds::{Client, in_words};
use crate::pods::{Known, PodUid};

/// Where a pod is told its role's name.
pub(super) const LIST: &str = "/latest/meta-data/iam/security-credentials/";

/// What answers pods, and tells what it would.
pub trait Rehearse: Send + Sync {
    /// What a request of this client for this path is answered.
    fn rehearse<'a>(&'a self, client: &'a Client, path: String) -> Rehearsing<'a>;

    /// Whether a request without a session token is answered 401, whatever it asks for.
    fn requires_tokens(&self) -> bool;
}

/// An answer, once it is given.
pub type Rehearsing<'a> = Pin<Box<dyn Future<Output = AnswerLine> + Send + 'a>>;

impl<I: Issuer> Rehearse for Server<I> {
    fn rehearse<'a>(&'a self, client: &'a Client, path: String) -> Rehearsing<'a> {
        Box::pin(async move {
            let answer = self.rehearse(client, &path).await;
            line(path, answer).await
        })
    }

    fn requires_tokens(&self) -> bool {
        Self::requires_tokens(self)
    }
}

impl<I: Issuer> LiveAgent<I> {
    /// What the pod with this UID is answered.
    pub(super) async fn answers(&self, uid: &PodUid) -> Vec<AnswerLine> {
        // One after the other: whoever decides holds both, in another order.
        let inventory = Arc::clone(&self.pods.borrow());
        let rules = Arc::clone(&self.rules.borrow());
        // Of several with one UID nobody can tell which one asks.
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
        let list = serving.handler.rehearse(&client, LIST.to_owned()).await;
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
            answers.push(serving.handler.rehearse(&client, path).await);
        }
        answers
    }
}

/// An answer in words; what the node's metadata service says is not read.
pub(super) async fn line<B>(path: String, answer: Response<Either<Full<Bytes>, B>>) -> AnswerLine {
    let status = answer.status().as_u16();
    let says = match answer.into_body() {
        Either::Left(body) => match body.collect().await {
            Ok(body) => in_words(&body.to_bytes()),
            Err(never) => match never {},
        },
        Either::Right(_) => "what the node's metadata service says".to_owned(),
    };
    AnswerLine { path, status, says }
}
