//! Where answers are given: on a port, and on a socket.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, info, warn};

use super::client::GUARD_PATH;
use super::metrics::MetricSource;
use super::routes::{self, Access, Routes};
use crate::guard::GuardReport;
use crate::introspection::Introspection;
use crate::node_ports::{self, SUGGESTED_ADMIN_PORT};
use crate::telemetry::health::{Condition, Health, Part};

/// Between two attempts at a port that is taken.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// For a request's head, and between requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// For a connection: one that does not take its answers must not keep a place for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// Connections of the port at a time: others are closed, and the socket, which probes use, is not affected.
const MAX_CONNECTIONS: usize = 32;

/// What is answered, and where.
#[derive(Clone)]
pub struct Admin {
    health: Health,
    routes: Routes,
    places: Arc<Semaphore>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

impl Admin {
    /// Answers nothing yet.
    pub fn new(health: Health, source: Arc<dyn MetricSource>, introspection: Arc<dyn Introspection>) -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self {
            routes: Routes::new(health.clone(), source, introspection),
            health,
            places,
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
                            Ok((stream, peer)) => match Arc::clone(&self.places).try_acquire_owned() {
                                Ok(place) => self.spawn(stream, Access::at(peer), Some(place)),
                                Err(_) => debug!("too many admin connections: one is closed"),
                            },
                            Err(error) => pause(&error).await,
                        }
                    }
                }
                Err(error) => {
                    let wanted = node_ports::wanted_by(address.port());
                    let wanted = wanted
                        .map(|who| format!(" (the port of {who})"))
                        .unwrap_or_default();
                    let text = format!(
                        "--admin-address {address}: {error}{wanted}; give another port, such as {SUGGESTED_ADMIN_PORT}, or off: probes \
                         and commands need none"
                    );
                    if !std::mem::replace(&mut complained, true) {
                        warn!("{text}");
                    }
                    self.health.set(Part::Admin, Condition::Degraded(text));
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    /// Answers on a socket.
    pub async fn serve_socket(self, listener: UnixListener) {
        accept(listener, |stream| self.spawn(stream, Access::Root, None)).await;
    }

    fn spawn(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        access: Access,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let routes = self.routes.clone();
        tokio::spawn(async move {
            serve_connection(stream, |request| {
                let routes = routes.clone();
                async move { routes.answer(&request, access).await }
            })
            .await;
            drop(place);
        });
    }
}

/// Answers a guard's probes on its socket, and at `/guard` what it reports of itself.
pub async fn serve_guard<F>(health: Health, report: F, listener: UnixListener)
where
    F: Fn() -> GuardReport + Clone + Send + Sync + 'static,
{
    accept(listener, |stream| {
        let (health, report) = (health.clone(), report.clone());
        tokio::spawn(serve_connection(stream, move |request| {
            let answer = match request.uri().path() {
                GUARD_PATH => Some(routes::json(&report())),
                path => routes::health(path, &health),
            };
            async move {
                answer
                    .unwrap_or_else(|| routes::text(StatusCode::NOT_FOUND, "/healthz, /readyz and /guard\n"))
            }
        }));
    })
    .await;
}

async fn accept(listener: UnixListener, serve: impl Fn(UnixStream)) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => serve(stream),
            Err(error) => pause(&error).await,
        }
    }
}

async fn serve_connection<F: Future<Output = Response<Full<Bytes>>>>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Fn(Request<Incoming>) -> F,
) {
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!("an admin connection ended: {error}"),
        Err(_) => debug!("an admin connection was open for too long"),
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
