//! Accepted connections: who it is, then its requests, until it ends or the agent does.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::answer::{self, Answer};
use super::patience::{Patient, Stage};
use super::{Caller, Service};
use crate::credentials::Issuer;
use crate::intercept::caller::Callers;
use crate::pods::PodUid;

/// How long a connection may say nothing at all.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection may take over a request's body.
const BODY: Duration = Duration::from_secs(5);

/// Longest head that is read.
const MAX_HEAD: usize = 16 * 1024;

/// Longest body that is read and dropped; the metadata service has no use for one.
const MAX_BODY: usize = 16 * 1024;

/// How the server goes on. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Serving.
    Serving,
    /// Each connection ends after its next answer.
    Draining,
    /// Connections that wait for a request are closed.
    Closing,
}

/// What all connections share.
pub struct Server<I> {
    callers: Callers,
    service: Service<I>,
    phase: watch::Receiver<Phase>,
    served: AtomicU64,
    refused: AtomicU64,
    open: TaskTracker,
    per_pod: PerPod,
    complained: Mutex<Option<Instant>>,
}

impl<I> std::fmt::Debug for Server<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("served", &self.served)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

impl<I: Issuer> Server<I> {
    /// A server without listeners yet.
    pub fn new(
        callers: Callers,
        service: Service<I>,
        phase: watch::Receiver<Phase>,
        connections_per_pod: usize,
    ) -> Self {
        let (served, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self {
            callers,
            service,
            phase,
            served,
            refused,
            open: TaskTracker::new(),
            per_pod: PerPod::new(connections_per_pod),
            complained: Mutex::new(None),
        }
    }

    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// Connections served and refused so far.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.served.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }

    /// Accepts until the phase is [`Phase::Closing`], and then what is still waiting to be accepted.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, address: SocketAddr) {
        let mut phase = self.phase.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = reached(&mut phase, Phase::Closing) => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    self.open
                        .spawn(Arc::clone(&self).connection(stream, peer, address));
                }
                Err(error) => {
                    // Out of descriptors or memory, most likely: what waits is not lost, only late.
                    if self.complain() {
                        warn!("cannot accept a connection: {error}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, address: SocketAddr) {
        let caller = match self.callers.identify(&stream, peer, address) {
            Ok(uid) => Caller {
                uid,
                address: peer.ip().to_canonical(),
            },
            Err(reason) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                if reason.is_our_fault() && self.complain() {
                    warn!(%peer, "refused: {reason}");
                } else {
                    debug!(%peer, "refused: {reason}");
                }
                return;
            }
        };
        let Some(_place) = self.per_pod.take(&caller.uid) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            if self.complain() {
                warn!(pod = %caller.uid, "refused: the pod has {} connections open", self.per_pod.limit);
            }
            return;
        };
        self.served.fetch_add(1, Ordering::Relaxed);
        let _ = stream.set_nodelay(true);
        let mut phase = self.phase.clone();
        let stage = Stage::default();
        let service = service_fn(|request| {
            stage.busy();
            let (answer, stage) = (self.request(&caller, request), &stage);
            async move {
                let answer = answer.await;
                stage.idle();
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(MAX_HEAD)
            .half_close(true)
            .serve_connection(TokioIo::new(Patient::new(stream, stage.clone())), service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = reached(&mut phase, Phase::Closing) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%peer, pod = %caller.uid, "connection ended: {error}");
        }
    }

    /// Whether a fault of our own may be logged again: at most one in ten seconds, as pods can cause many.
    fn complain(&self) -> bool {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
        if due {
            *last = Some(Instant::now());
        }
        due
    }

    async fn request(&self, caller: &Caller, request: Request<Incoming>) -> Result<Answer, Infallible> {
        let (head, body) = request.into_parts();
        // Read and dropped, or the next request on this connection would begin in the middle of it.
        let drained = tokio::time::timeout(BODY, Limited::new(body, MAX_BODY).collect()).await;
        let mut response = match drained {
            Ok(Ok(_)) => {
                self.service
                    .answer(caller, &head.method, &head.uri, &head.headers)
                    .await
            }
            Ok(Err(_)) => answer::failure(
                StatusCode::PAYLOAD_TOO_LARGE,
                "Requests for metadata have no body.",
            ),
            Err(_) => answer::failure(StatusCode::REQUEST_TIMEOUT, "The body did not come."),
        };
        if *self.phase.borrow() != Phase::Serving {
            response
                .headers_mut()
                .insert(CONNECTION, HeaderValue::from_static("close"));
        }
        debug!(pod = %caller.uid, method = %head.method, path = head.uri.path(), status = response.status().as_u16());
        Ok(response)
    }
}

/// How many connections each pod has open.
struct PerPod {
    limit: usize,
    open: Arc<Mutex<HashMap<PodUid, usize>>>,
}

/// One of a pod's connections, until it is dropped.
struct Place {
    uid: PodUid,
    open: Arc<Mutex<HashMap<PodUid, usize>>>,
}

impl PerPod {
    fn new(limit: usize) -> Self {
        let open = Arc::default();
        Self { limit, open }
    }

    /// `None` where the pod has as many as it may.
    fn take(&self, uid: &PodUid) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(uid.clone()).or_default();
        if *count >= self.limit {
            return None;
        }
        *count += 1;
        Some(Place {
            uid: uid.clone(),
            open: Arc::clone(&self.open),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

async fn reached(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An agent that is gone is closing too.
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}
