//! The answers, and who is given which.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::host::is_for_host;
use super::metrics::{self, MetricSource};
use crate::explain::Verdict;
use crate::introspection::{Introspection, page};
use crate::telemetry::health::Health;

/// Who asks, as far as that makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Over the socket, which only root reaches.
    Root,
    /// Over the port, on the node itself or through `kubectl port-forward`.
    Node,
    /// Over the port, from anywhere that it is open to: pods, for one.
    Network,
}

impl Access {
    /// By the other end of a connection to the port.
    pub fn at(peer: SocketAddr) -> Self {
        if peer.ip().to_canonical().is_loopback() {
            Self::Node
        } else {
            Self::Network
        }
    }
}

/// The answer to a question about health; none where something else is asked for.
pub(super) fn health(path: &str, health: &Health) -> Option<Response<Full<Bytes>>> {
    match path {
        // A process that answers is alive; a part that has failed ends it.
        "/healthz" => Some(text(StatusCode::OK, "ok\n")),
        "/readyz" if health.is_ready() => Some(text(StatusCode::OK, health.to_string())),
        "/readyz" => Some(text(StatusCode::SERVICE_UNAVAILABLE, health.to_string())),
        _ => None,
    }
}

/// What is answered from. Cheap to clone.
#[derive(Clone)]
pub(super) struct Routes {
    health: Health,
    source: Arc<dyn MetricSource>,
    introspection: Arc<dyn Introspection>,
    turn: Arc<Semaphore>,
}

impl Routes {
    pub fn new(health: Health, source: Arc<dyn MetricSource>, introspection: Arc<dyn Introspection>) -> Self {
        Self {
            health,
            source,
            introspection,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// The answer to one request.
    pub async fn answer<B>(&self, request: &Request<B>, access: Access) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        }
        let path = request.uri().path();
        if let Some(answer) = health(path, &self.health) {
            return answer;
        }
        match path {
            "/metrics" => self.answer_apart(Self::metrics).await,
            // They name every pod with its role, and what STS says of it.
            "/" | "/status" if access == Access::Network => text(
                StatusCode::FORBIDDEN,
                "pods and their roles are shown on the node itself only: `metaproxy status` there, or `kubectl port-forward` \
                 to the agent's pod\n",
            ),
            // A page that the reader's browser has open could ask in the reader's place (DNS rebinding): its Host is a name.
            "/" | "/status"
                if access == Access::Node && !is_for_host(request, self.introspection.node_name()) =>
            {
                text(
                    StatusCode::MISDIRECTED_REQUEST,
                    "pods and their roles are shown under an IP address, localhost or the node's name (--node-name) only: open \
                 http://127.0.0.1 with the port that this came by\n",
                )
            }
            "/" => self.answer_apart(Self::page).await,
            "/status" => {
                self.answer_apart(|routes| json(&routes.introspection.status()))
                    .await
            }
            "/explain" if access == Access::Root => {
                self.answer_apart(|routes| json(&routes.introspection.explain(None)))
                    .await
            }
            _ => match path.strip_prefix("/explain/").filter(|_| access == Access::Root) {
                Some(pod) => self.explanations(pod.to_owned()).await,
                None => text(StatusCode::NOT_FOUND, "/, /status, /healthz, /readyz, /metrics\n"),
            },
        }
    }

    /// Why pods with a name get what they get, and what each is answered.
    async fn explanations(&self, pod: String) -> Response<Full<Bytes>> {
        let found = self
            .apart(move |routes| routes.introspection.explain(Some(&pod)))
            .await;
        let mut found = match found {
            Ok(found) => found,
            Err(error) => return failed(error),
        };
        for one in &mut found {
            let given = self.introspection.dry_run(one).await;
            // What it waited for has come between the two: both are to be of one moment.
            if one.verdict == Verdict::Waiting && given.last().is_some_and(|last| last.status != 503) {
                let pod = one.pod.clone();
                let again = self
                    .apart(move |routes| routes.introspection.explain(Some(&pod)))
                    .await;
                let newer = again
                    .unwrap_or_default()
                    .into_iter()
                    .find(|newer| newer.uid == one.uid);
                if let Some(newer) = newer {
                    *one = newer;
                }
            }
            one.add_answers(given);
        }
        json(&found)
    }

    /// A whole answer, put together [apart](Self::apart).
    async fn answer_apart(
        &self,
        make: impl FnOnce(&Self) -> Response<Full<Bytes>> + Send + 'static,
    ) -> Response<Full<Bytes>> {
        self.apart(make).await.unwrap_or_else(failed)
    }

    /// Puts something together beside the threads that answer pods, one at a time: what is being put together takes its
    /// turn to the end, also where whoever asked has gone in the meantime.
    async fn apart<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let routes = self.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            make(&routes)
        })
        .await
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match metrics::text(&*self.source, &self.health, &self.introspection.verdicts()) {
            Ok(metrics) => typed(metrics::CONTENT_TYPE, metrics),
            Err(error) => failed(error),
        }
    }

    fn page(&self) -> Response<Full<Bytes>> {
        let mut response = typed(
            "text/html; charset=utf-8",
            page::html(&self.introspection.status()),
        );
        let policy = HeaderValue::from_static(page::POLICY);
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        response
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => typed("application/json", body),
        Err(error) => failed(error),
    }
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn failed(error: impl std::fmt::Display) -> Response<Full<Bytes>> {
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests;
