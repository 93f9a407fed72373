//! Accepted connections: who it is, and whether there is room; then its requests, until it ends or the agent does.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::answer::Answer;
use super::http::{Http, Phase, reached};
use super::limits::{ClientLimits, Limits, Permit};
use super::{Client, Service};
use crate::credentials::Issuer;
use crate::intercept::caller::{Callers, Unidentified};
use crate::intercept::refusals::Refusals;
use crate::intercept::self_check::SelfChecks;
use crate::pods::PodUid;
use crate::telemetry::metrics::{Requests, Turns};

/// What all connections share.
pub struct Server<I> {
    callers: Callers,
    refusals: Refusals,
    checks: Arc<SelfChecks>,
    http: Http<I>,
    phase: watch::Receiver<Phase>,
    counters: Counters,
    open: TaskTracker,
    /// Before anybody knows whose a connection is: to find that out is the most of what it costs.
    by_address: ClientLimits<IpAddr>,
    by_pod: ClientLimits<PodUid>,
    /// hostNetwork pods share the node's.
    own_addresses: RwLock<Vec<IpAddr>>,
    complained: Mutex<Option<Instant>>,
    told_of_limit: Mutex<Option<Instant>>,
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
        refusals: Refusals,
        checks: Arc<SelfChecks>,
        service: Service<I>,
        phase: watch::Receiver<Phase>,
        limits: Limits,
        own_addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            callers,
            refusals,
            checks,
            http: Http::new(service, phase.clone(), limits),
            phase,
            counters: Counters::default(),
            open: TaskTracker::new(),
            by_address: ClientLimits::new(limits),
            by_pod: ClientLimits::new(limits),
            own_addresses: RwLock::new(own_addresses),
            complained: Mutex::new(None),
            told_of_limit: Mutex::new(None),
        }
    }

    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// What is measured of requests.
    pub fn measured(&self) -> &Requests {
        self.http.measured()
    }

    /// What is measured of requests for the node's metadata.
    pub fn node_requests(&self) -> &Turns {
        self.http.service().passthrough().turns()
    }

    /// As [`Service::rehearse`].
    pub async fn rehearse(&self, client: &Client, path: &str) -> Answer {
        self.http.service().rehearse(client, path).await
    }

    /// As [`Service::requires_tokens`].
    pub fn requires_tokens(&self) -> bool {
        self.http.service().requires_tokens()
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

    /// Connections that were refused, by kind and pod.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// The agent's checks of its own listeners.
    pub fn checks(&self) -> &Arc<SelfChecks> {
        &self.checks
    }

    /// Accepts until the phase is [`Phase::Closing`] or the listener is `closed`, and then what is still waiting to be
    /// accepted.
    pub async fn accept(self: Arc<Self>, listener: TcpListener, closed: CancellationToken) {
        let mut phase = self.phase.clone();
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = reached(&mut phase, Phase::Closing) => return,
                () = closed.cancelled() => return,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let is_own = self.is_own(peer);
                    let permit = if is_own {
                        None
                    } else {
                        self.by_address.acquire(&peer.ip())
                    };
                    if is_own || permit.is_some() {
                        self.open
                            .spawn(Arc::clone(&self).connection(stream, peer, permit));
                    } else {
                        self.over_limit(&peer.ip());
                    }
                }
                Err(error) => {
                    // Out of descriptors or memory, most likely: what waits is not lost, only late.
                    if due(&self.complained) {
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
        if due(&self.told_of_limit) {
            let limit = self.by_pod.limits().connections;
            warn!(%whose, "refused: it has {limit} connections open");
        }
    }

    async fn slow(&self, permit: &Permit) {
        if let Some(wait) = permit.wait_for_connection() {
            count(&self.counters.slowed_connections);
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes note that the listeners are at other addresses now.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        *self.own_addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn is_own(&self, peer: SocketAddr) -> bool {
        let own = self.own_addresses.read().unwrap_or_else(PoisonError::into_inner);
        own.contains(&peer.ip().to_canonical())
    }

    /// Counts and reports a connection without a client, unless it is a check of the agent's own.
    async fn refuse(&self, mut stream: TcpStream, peer: SocketAddr, reason: Unidentified) {
        let is_own = self.is_own(peer);
        let refused = if is_own {
            self.checks.take(&mut stream, reason).await
        } else {
            Some(reason)
        };
        let Some(reason) = refused else { return };
        count(&self.counters.unidentified);
        debug!(%peer, "refused: {reason}");
        self.refusals.note(reason.kind(), reason.pod(), 1);
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, of_address: Option<Permit>) {
        if let Some(permit) = &of_address {
            self.slow(permit).await;
        }
        let client = match self.callers.identify(&stream, peer.ip()) {
            Ok(uid) => Client { uid },
            Err(reason) => return self.refuse(stream, peer, reason).await,
        };
        let Some(permit) = self.by_pod.acquire(&client.uid) else {
            self.over_limit(&client.uid);
            return;
        };
        count(&self.counters.served);
        if of_address.is_none() {
            self.slow(&permit).await;
        }
        let _ = stream.set_nodelay(true);
        let counted = || count(&self.counters.slowed_requests);
        if let Err(error) = self.http.serve(stream, &client, &permit, counted).await {
            debug!(%peer, pod = %client.uid, "connection ended: {error}");
        }
    }
}

/// Whether something may be logged again: once in ten seconds, as pods can cause much of it.
fn due(last: &Mutex<Option<Instant>>) -> bool {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let due = last.is_none_or(|last| last.elapsed() >= Duration::from_secs(10));
    if due {
        *last = Some(Instant::now());
    }
    due
}
