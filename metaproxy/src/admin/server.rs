//! Serves the admin routes on a socket and, if configured, on a port, from a separate thread.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener as StdUnixListener;
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
use tokio::runtime::{Builder, Handle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{debug, info, warn};

use super::GuardReport;
use super::client::GUARD_PATH;
use super::routes::{self, Access, Routes};
use super::workers::Workers;
use crate::introspection::{Introspection, MetricSource};
use crate::node_ports::{self, SUGGESTED_ADMIN_PORT};
use crate::telemetry::health::{Condition, Health, Part};

/// The time between two attempts to listen on a port that is in use.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);

/// The time between two attempts to accept a connection, for example while no file descriptor is free.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// How long a client may take to send the head of a request. It also limits how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a connection may last. The limit ends the connection of a client that does not read its responses, so
/// that its permit becomes free.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);

/// The maximum number of open connections to the port. Further connections are closed at once. The socket has no such
/// limit, so that probes are always served.
const MAX_CONNECTIONS: usize = 32;

/// The admin server of an agent, before it is started.
#[derive(Clone)]
pub struct Admin {
    health: Health,
    routes: Routes,
    permits: Arc<Semaphore>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Admin")
    }
}

/// The thread of a running admin server. Dropping it stops the thread soon, and does not wait for its end.
#[derive(Debug)]
pub struct AdminThread {
    _stop: oneshot::Sender<Infallible>,
}

impl Admin {
    /// Makes the server of an agent whose pods are served by the workers of `runtime`.
    pub fn new(
        runtime: Handle,
        health: Health,
        metrics: Arc<dyn MetricSource>,
        introspection: Arc<dyn Introspection>,
    ) -> Self {
        Self::with_workers(Workers::new(runtime), health, metrics, introspection)
    }

    pub(super) fn with_workers(
        workers: Workers,
        health: Health,
        metrics: Arc<dyn MetricSource>,
        introspection: Arc<dyn Introspection>,
    ) -> Self {
        Self {
            routes: Routes::new(workers, health.clone(), metrics, introspection),
            health,
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Starts a thread that serves a nonblocking socket, and a port if there is one. The thread has its own runtime,
    /// so that requests about health are answered when all workers of the agent's runtime hang. The returned future
    /// completes when the thread ends.
    ///
    /// # Errors
    /// If the runtime or the thread cannot be created.
    pub fn start(
        self,
        socket: StdUnixListener,
        port: Option<SocketAddr>,
    ) -> io::Result<(AdminThread, impl Future<Output = ()> + Send + 'static)> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .thread_name("admin-blocking")
            .build()?;
        let socket = {
            let _context = runtime.enter();
            UnixListener::from_std(socket)?
        };
        let (stop, stopped) = oneshot::channel();
        let (ended, end) = oneshot::channel::<Infallible>();
        let serve = move || {
            // This value is dropped when the thread ends, also if it panics.
            let _ended = ended;
            runtime.block_on(async {
                tokio::select! {
                    () = self.serve_socket(socket) => {}
                    () = self.serve_port(port) => {}
                    _ = stopped => {}
                }
            });
            // A response that is still being computed must not keep the thread running.
            runtime.shutdown_background();
        };
        std::thread::Builder::new()
            .name("admin".to_owned())
            .spawn(serve)?;
        let end = async {
            let _ = end.await;
        };
        Ok((AdminThread { _stop: stop }, end))
    }

    async fn serve_socket(&self, listener: UnixListener) {
        accept(listener, |stream| self.spawn(stream, Access::Root, None)).await;
    }

    /// Serves a port, which another instance may share. If the port is in use, the agent tries again later, because
    /// probes and commands work without the port.
    async fn serve_port(&self, port: Option<SocketAddr>) {
        let Some(address) = port else {
            return std::future::pending().await;
        };
        let mut is_first = true;
        loop {
            match listen(address) {
                Ok(listener) => {
                    info!(%address, "serving health and metrics");
                    self.health.set(Part::Admin, Condition::Fine);
                    self.accept(listener).await;
                }
                Err(error) => {
                    let reason = taken(address, &error);
                    if std::mem::take(&mut is_first) {
                        warn!("{reason}");
                    }
                    self.health.set(Part::Admin, Condition::Degraded(reason));
                    tokio::time::sleep(RETRY_INTERVAL).await;
                }
            }
        }
    }

    async fn accept(&self, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match Arc::clone(&self.permits).try_acquire_owned() {
                    Ok(permit) => self.spawn(stream, Access::at(peer), Some(permit)),
                    Err(_) => debug!("closed an admin connection: {MAX_CONNECTIONS} are open"),
                },
                Err(error) => pause(&error).await,
            }
        }
    }

    fn spawn(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        access: Access,
        permit: Option<OwnedSemaphorePermit>,
    ) {
        let routes = self.routes.clone();
        tokio::spawn(async move {
            serve_connection(stream, |request| {
                let routes = routes.clone();
                async move { routes.answer(&request, access).await }
            })
            .await;
            drop(permit);
        });
    }
}

/// Serves a guard's nonblocking socket: its probes, and its report at `/guard`.
pub async fn serve_guard<F>(health: Health, report: F, socket: StdUnixListener)
where
    F: Fn() -> GuardReport + Clone + Send + Sync + 'static,
{
    let listener = match UnixListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => return warn!("cannot serve the guard's socket: {error}"),
    };
    accept(listener, |stream| {
        let (health, report) = (health.clone(), report.clone());
        tokio::spawn(serve_connection(stream, move |request| {
            let response = match request.uri().path() {
                GUARD_PATH => Some(routes::json(&report())),
                path => routes::health(path, &health),
            };
            async move {
                response.unwrap_or_else(|| {
                    routes::text(
                        StatusCode::NOT_FOUND,
                        "served here: /healthz, /readyz and /guard\n",
                    )
                })
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
        Ok(Err(error)) => debug!("an admin connection failed: {error}"),
        Err(_) => debug!(
            "closed an admin connection after {} s",
            CONNECTION_TIMEOUT.as_secs()
        ),
    }
}

async fn pause(error: &io::Error) {
    debug!("cannot accept an admin connection: {error}");
    tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
}

/// Formats the message that explains why the agent cannot listen on a port, and what to do.
fn taken(address: SocketAddr, error: &io::Error) -> String {
    let usual = node_ports::wanted_by(address.port())
        .map(|who| format!(" (the port of {who})"))
        .unwrap_or_default();
    format!(
        "--admin-address {address}: {error}{usual}; give another port, such as {SUGGESTED_ADMIN_PORT}, or off: probes and \
         commands need none"
    )
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    // During an update, the new instance listens on the same port as this one. Only processes of the same user can
    // share a port (socket(7)).
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    socket.listen(64)
}

#[cfg(test)]
mod tests;
