//! Accepted connections: who it is, then its requests, until it ends or the agent does.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
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
pub use super::per_pod::Limits;
use super::per_pod::{Place, Shares};
use super::{Caller, Service};
use crate::credentials::Issuer;
use crate::intercept::caller::Callers;
use crate::pods::PodUid;

/// How long a connection may take over a request's body.
const BODY: Duration = Duration::from_secs(5);

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
    counters: Counters,
    open: TaskTracker,
    /// Before anybody knows whose a connection is: to find that out is the most of what it costs.
    by_address: Shares<IpAddr>,
    by_pod: Shares<PodUid>,
    /// hostNetwork pods share the node's.
    own_addresses: Vec<IpAddr>,
    complained: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Counters {
    served: AtomicU64,
    unidentified: AtomicU64,
    over_limit: AtomicU64,
    slowed_connections: AtomicU64,
    slowed_requests: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// What came of connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Served.
    pub served: u64,
    /// Closed, as nobody can tell whose they are.
    pub unidentified: u64,
    /// Closed, as their pod has too many.
    pub over_limit: u64,
    /// Of those served: had to wait, as their pod makes too many in a second.
    pub slowed_connections: u64,
    /// Requests that had to wait.
    pub slowed_requests: u64,
}

impl<I> std::fmt::Debug for Server<I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl<I: Issuer> Server<I> {
    /// A server without listeners yet; they will be at these addresses.
    pub fn new(
        callers: Callers,
        service: Service<I>,
        phase: watch::Receiver<Phase>,
        limits: Limits,
        own_addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            callers,
            service,
            phase,
            counters: Counters::default(),
            open: TaskTracker::new(),
            by_address: Shares::new(limits),
            by_pod: Shares::new(limits),
            own_addresses,
            complained: Mutex::new(None),
        }
    }

    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// What came of connections so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            served: read(&self.counters.served),
            unidentified: read(&self.counters.unidentified),
            over_limit: read(&self.counters.over_limit),
            slowed_connections: read(&self.counters.slowed_connections),
            slowed_requests: read(&self.counters.slowed_requests),
        }
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
                    let is_own = self.own_addresses.contains(&peer.ip().to_canonical());
                    let place = if is_own {
                        None
                    } else {
                        self.by_address.take(&peer.ip())
                    };
                    if is_own || place.is_some() {
                        self.open
                            .spawn(Arc::clone(&self).connection(stream, peer, address, place));
                    } else {
                        self.over_limit(&peer.ip());
                    }
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

    /// Of an address that has as many connections as it may, or of a pod.
    fn over_limit(&self, whose: &impl std::fmt::Display) {
        count(&self.counters.over_limit);
        if self.complain() {
            let limit = self.by_pod.limits().connections;
            warn!(%whose, "refused: it has {limit} connections open");
        }
    }

    async fn slow(&self, place: &Place) {
        if let Some(wait) = place.wait_for_connection() {
            count(&self.counters.slowed_connections);
            tokio::time::sleep(wait).await;
        }
    }

    async fn connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        address: SocketAddr,
        of_address: Option<Place>,
    ) {
        if let Some(place) = &of_address {
            self.slow(place).await;
        }
        let caller = match self.callers.identify(&stream, peer, address) {
            Ok(uid) => Caller {
                uid,
                address: peer.ip().to_canonical(),
            },
            Err(reason) => {
                count(&self.counters.unidentified);
                if reason.is_our_fault() && self.complain() {
                    warn!(%peer, "refused: {reason}");
                } else {
                    debug!(%peer, "refused: {reason}");
                }
                return;
            }
        };
        let Some(place) = self.by_pod.take(&caller.uid) else {
            self.over_limit(&caller.uid);
            return;
        };
        count(&self.counters.served);
        if of_address.is_none() {
            self.slow(&place).await;
        }
        let _ = stream.set_nodelay(true);
        let mut phase = self.phase.clone();
        let (stage, limits) = (Stage::default(), *self.by_pod.limits());
        let service = service_fn(|request| {
            stage.busy();
            let (answer, stage) = (self.request(&caller, &place, request), &stage);
            async move {
                let answer = answer.await;
                stage.idle();
                answer
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle)
            .max_buf_size(limits.head)
            .half_close(true)
            .serve_connection(
                TokioIo::new(Patient::new(stream, stage.clone(), limits.head_time)),
                service,
            );
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

    async fn request(
        &self,
        caller: &Caller,
        place: &Place,
        request: Request<Incoming>,
    ) -> Result<Answer, Infallible> {
        if let Some(wait) = place.wait_for_request() {
            count(&self.counters.slowed_requests);
            tokio::time::sleep(wait).await;
        }
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

async fn reached(phases: &mut watch::Receiver<Phase>, wanted: Phase) {
    // An agent that is gone is closing too.
    let _ = phases.wait_for(|phase| *phase >= wanted).await;
}
