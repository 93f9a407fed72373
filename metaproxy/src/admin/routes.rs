//! The routes of the admin server: the response to each path, and the clients that may get it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use tokio::sync::Semaphore;
use tokio::task::JoinError;

use super::host::is_for_host;
use super::metrics;
use super::workers::Workers;
use crate::explain::{AnswerLine, Explanation, Verdict};
use crate::introspection::{Introspection, MetricSource, page};
use crate::telemetry::health::Health;

/// How long a response may take. It is less than the timeout of the commands, so that a command receives the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(9);

const SLOW: &str = "the agent has not put the response together within 9 s: its worker threads hang, or the node is overloaded\n";

const NODE_ONLY: &str = "pods and their roles are shown on the node itself only: `metaproxy status` there, or \
                         `kubectl port-forward` to the agent's pod\n";

const OTHER_HOST: &str = "pods and their roles are shown under an IP address, localhost or the node's name (--node-name) only: \
                          open http://127.0.0.1 with the port that this came by\n";

/// The access of a client, which depends on how it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everything. The client uses the socket, which only root can open.
    Root,
    /// The status of pods, health and metrics. The client uses the port from the node itself or through
    /// `kubectl port-forward`.
    Node,
    /// Health and metrics. The client uses the port, from any network that can reach it, which includes pods.
    Network,
}

impl Access {
    /// Returns the access of a client of the port, according to the client's address.
    pub fn at(peer: SocketAddr) -> Self {
        if peer.ip().to_canonical().is_loopback() {
            Self::Node
        } else {
            Self::Network
        }
    }
}

/// Answers a request about health. Returns `None` for any other path.
pub(super) fn health(path: &str, health: &Health) -> Option<Response<Full<Bytes>>> {
    match path {
        // A process that answers is alive, because it exits if one of its parts fails.
        "/healthz" => Some(text(StatusCode::OK, "ok\n")),
        "/readyz" if health.is_ready() => Some(text(StatusCode::OK, health.to_string())),
        "/readyz" => Some(text(StatusCode::SERVICE_UNAVAILABLE, health.to_string())),
        _ => None,
    }
}

/// The routes of an agent's admin server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Routes {
    workers: Workers,
    health: Health,
    metrics: Arc<dyn MetricSource>,
    introspection: Arc<dyn Introspection>,
    turn: Arc<Semaphore>,
}

impl Routes {
    pub fn new(
        workers: Workers,
        health: Health,
        metrics: Arc<dyn MetricSource>,
        introspection: Arc<dyn Introspection>,
    ) -> Self {
        Self {
            workers,
            health,
            metrics,
            introspection,
            turn: Arc::new(Semaphore::new(1)),
        }
    }

    /// Answers a request, within [`ANSWER_TIMEOUT`].
    pub async fn answer<B>(&self, request: &Request<B>, access: Access) -> Response<Full<Bytes>> {
        let answer = self.answer_in_time(request, access);
        tokio::time::timeout(ANSWER_TIMEOUT, answer)
            .await
            .unwrap_or_else(|_| unavailable(SLOW))
    }

    async fn answer_in_time<B>(&self, request: &Request<B>, access: Access) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        }
        let path = request.uri().path();
        if let Some(answer) = health(path, &self.health) {
            return match self.check_workers(path).await {
                Ok(()) => answer,
                Err(hang) => unavailable(hang),
            };
        }
        match path {
            "/metrics" => self.compute_response(Self::metrics).await,
            // These pages name every pod with its role, and contain what STS has answered about the role.
            "/" | "/status" if access == Access::Network => text(StatusCode::FORBIDDEN, NODE_ONLY),
            // A malicious page in an operator's browser could send requests to this server (DNS rebinding). The Host
            // of such a request is a name of the page's site.
            "/" | "/status"
                if access == Access::Node && !is_for_host(request, self.introspection.node_name()) =>
            {
                text(StatusCode::MISDIRECTED_REQUEST, OTHER_HOST)
            }
            "/" => self.compute_response(Self::page).await,
            "/status" => {
                self.compute_response(|routes| json(&routes.introspection.status()))
                    .await
            }
            "/explain" if access == Access::Root => {
                self.compute_response(|routes| json(&routes.introspection.explain(None)))
                    .await
            }
            _ => match path.strip_prefix("/explain/").filter(|_| access == Access::Root) {
                Some(pod) => self.explanations(pod.to_owned()).await,
                None => text(
                    StatusCode::NOT_FOUND,
                    "served here: /, /status, /healthz, /readyz and /metrics\n",
                ),
            },
        }
    }

    async fn check_workers(&self, path: &str) -> Result<(), String> {
        let timeout = if path == "/healthz" {
            self.workers.live_timeout
        } else {
            self.workers.ready_timeout
        };
        self.workers.check(timeout).await
    }

    /// Explains the pods with this name, and adds the responses that each pod gets.
    async fn explanations(&self, pod: String) -> Response<Full<Bytes>> {
        let explain = move |routes: &Self| routes.introspection.explain(Some(&pod));
        let mut found = match self.compute(explain).await {
            Ok(found) => found,
            Err(error) => return failed(error),
        };
        for one in &mut found {
            let given = self.dry_run(one).await;
            // The information that the pod waited for arrived between the explanation and the dry run. Both must show
            // the same state, so the explanation is computed again.
            if one.verdict == Verdict::Waiting && given.last().is_some_and(|last| last.status != 503) {
                let pod = one.pod.clone();
                let explain = move |routes: &Self| routes.introspection.explain(Some(&pod));
                let again = self.compute(explain).await.unwrap_or_default();
                if let Some(newer) = again.into_iter().find(|newer| newer.uid == one.uid) {
                    *one = newer;
                }
            }
            one.add_answers(given);
        }
        json(&found)
    }

    /// Runs a dry run on the workers, because an operation that it starts (a call of STS, for example) must not be
    /// cancelled when the admin server stops.
    async fn dry_run(&self, of: &Explanation) -> Vec<AnswerLine> {
        let (introspection, of) = (Arc::clone(&self.introspection), of.clone());
        let answers = self
            .workers
            .run(async move { introspection.dry_run(&of).await })
            .await;
        answers.unwrap_or_default()
    }

    /// Computes a response with [`Self::compute`].
    async fn compute_response(
        &self,
        make: impl FnOnce(&Self) -> Response<Full<Bytes>> + Send + 'static,
    ) -> Response<Full<Bytes>> {
        self.compute(make).await.unwrap_or_else(failed)
    }

    /// Runs a computation outside of the admin thread, one computation at a time. A computation reads every pod, so
    /// parallel requests could otherwise use all processors of the node. A computation keeps its turn until it has
    /// finished, even if its client has disconnected.
    async fn compute<T: Send + 'static>(
        &self,
        compute: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        let routes = self.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = turn;
            compute(&routes)
        })
        .await
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match metrics::text(&*self.metrics, &self.health, &self.introspection.verdicts()) {
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

fn unavailable(why: impl Into<Bytes>) -> Response<Full<Bytes>> {
    text(StatusCode::SERVICE_UNAVAILABLE, why)
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
