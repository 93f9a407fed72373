//! The answers, and where they are given.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::metrics::{self, Sources};
use super::page;
use crate::explain::{Explanation, Verdict};
use crate::health::{Condition, Health, Part};
use crate::status::Status;

/// Between two attempts at a port that is taken.
const AGAIN: Duration = Duration::from_secs(10);

/// For a request's head, and between requests.
const PATIENCE: Duration = Duration::from_secs(10);

/// For a connection: one that does not take its answers must not keep a place for ever.
const LONGEST: Duration = Duration::from_secs(300);

/// Connections of the port at a time: others are closed, and the socket, which probes use, is not affected.
const CONNECTIONS: usize = 32;

/// Explanations, once they are put together.
pub type Explaining<'a> = Pin<Box<dyn Future<Output = Vec<Explanation>> + Send + 'a>>;

/// What people ask an agent.
pub trait Desk: Send + Sync {
    /// Why all pods get what they get, or those with a name (`namespace/name`).
    fn explain(&self, pod: Option<String>) -> Explaining<'_>;
    /// How the agent is doing.
    fn status(&self) -> Status;
    /// Pods, by what comes of their role.
    fn verdicts(&self) -> BTreeMap<Verdict, u64>;
}

/// What is answered from.
#[derive(Clone)]
pub struct Admin {
    health: Health,
    sources: Arc<dyn Sources>,
    desk: Arc<dyn Desk>,
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    /// Answers nothing yet.
    pub fn new(health: Health, sources: Arc<dyn Sources>, desk: Arc<dyn Desk>) -> Self {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        Self {
            health,
            sources,
            desk,
            places,
            turns: Arc::new(Semaphore::new(1)),
        }
    }

    /// Answers on a port, which another instance may share. A port that is taken costs nothing but the answers.
    pub async fn serve(self, address: SocketAddr) {
        let mut complained = false;
        loop {
            match listen(address) {
                Ok(listener) => {
                    info!(%address, "health and metrics");
                    self.health.set(Part::Admin, Condition::Fine);
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => match Arc::clone(&self.places).try_acquire_owned() {
                                Ok(place) => self.spawn(stream, Some(place)),
                                Err(_) => debug!("too many admin connections: one is closed"),
                            },
                            Err(error) => pause(&error).await,
                        }
                    }
                }
                Err(error) => {
                    let text =
                        format!("--admin-address {address}: {error}; --admin-address=off goes without");
                    if !std::mem::replace(&mut complained, true) {
                        warn!("{text}");
                    }
                    self.health.set(Part::Admin, Condition::Degraded(text));
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Answers on a socket.
    pub async fn serve_socket(self, listener: UnixListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => self.spawn(stream, None),
                Err(error) => pause(&error).await,
            }
        }
    }

    fn spawn(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let admin = self.clone();
        // Whoever reaches the socket is root; the port may be open to a network.
        let is_socket = place.is_none();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(admin.answer(&request, is_socket).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(LONGEST, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => debug!("an admin connection ended: {error}"),
                Err(_) => debug!("an admin connection was open for too long"),
            }
            drop(place);
        });
    }

    async fn answer<B>(&self, request: &Request<B>, is_socket: bool) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "GET and HEAD only\n");
        }
        let path = request.uri().path();
        match path {
            // Whoever answers is alive; a part that has failed ends the process.
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" if self.health.is_ready() => text(StatusCode::OK, self.health.to_string()),
            "/readyz" => text(StatusCode::SERVICE_UNAVAILABLE, self.health.to_string()),
            "/metrics" => self.apart(Self::metrics).await,
            "/" => self.apart(Self::page).await,
            "/status" => self.apart(|admin| json(&admin.desk.status())).await,
            "/explain" if is_socket => json(&self.desk.explain(None).await),
            _ => match path.strip_prefix("/explain/").filter(|_| is_socket) {
                Some(pod) => json(&self.desk.explain(Some(pod.to_owned())).await),
                None => text(StatusCode::NOT_FOUND, "/, /status, /healthz, /readyz, /metrics\n"),
            },
        }
    }
}

impl Admin {
    /// Puts an answer together beside the threads that answer pods, one at a time: it looks at every pod and descriptor.
    async fn apart(
        &self,
        answer: impl FnOnce(&Self) -> Response<Full<Bytes>> + Send + 'static,
    ) -> Response<Full<Bytes>> {
        let _turn = self.turns.acquire().await;
        let admin = self.clone();
        let done = tokio::task::spawn_blocking(move || answer(&admin)).await;
        done.unwrap_or_else(|error| text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")))
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        match metrics::text(&*self.sources, &self.health, &self.desk.verdicts()) {
            Ok(metrics) => typed(metrics::CONTENT_TYPE, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn page(&self) -> Response<Full<Bytes>> {
        let mut response = typed("text/html; charset=utf-8", page::html(&self.desk.status()));
        let policy = HeaderValue::from_static(page::POLICY);
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        response
    }
}

/// Out of descriptors, most likely.
async fn pause(error: &io::Error) {
    debug!("cannot accept an admin connection: {error}");
    tokio::time::sleep(Duration::from_millis(200)).await;
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    // For the instance that takes over; nothing secret is asked here, and nothing is decided.
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(64)
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(body) => typed("application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn typed(kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, body);
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
