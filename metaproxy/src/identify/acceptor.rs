//! Accepts connections and identifies their clients.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::limits::ADMISSION_TIMEOUT;
use super::refusals::Refusals;
use super::self_check::SelfChecks;
use super::{Admission, Client, ClientLimits, Identifier, Limits, Permit, Unidentified};
use crate::pods::PodUid;

/// The time between a failed attempt to accept and the next one. The usual cause is a shortage of file descriptors or
/// memory. Waiting connections are not lost.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The minimum time between two log messages about a condition that pods can cause deliberately.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A connection whose client is identified, which the next stage handles.
#[derive(Debug)]
pub struct Identified {
    /// The connection.
    pub stream: TcpStream,
    /// The source address of the connection.
    pub peer: SocketAddr,
    /// The client of the connection.
    pub client: Client,
    /// The permit of the client's pod for this connection, which also limits the rate of its requests.
    pub permit: Permit,
    _address_permit: Option<Permit>,
}

/// Accepts connections from all listeners.
pub struct Acceptor {
    identifier: Identifier,
    refusals: Refusals,
    checks: Arc<SelfChecks>,
    counters: Counters,
    open: TaskTracker,
    /// The limits per address. They apply before a connection is identified, because identification is most of a
    /// connection's cost.
    by_address: ClientLimits<IpAddr>,
    by_pod: ClientLimits<PodUid>,
    /// The addresses of the listeners. hostNetwork pods share them, so no limit by address applies to them.
    own_addresses: RwLock<Vec<IpAddr>>,
    accept_failure_logged: Mutex<Option<Instant>>,
    over_limit_logged: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Counters {
    served: AtomicU64,
    unidentified: AtomicU64,
    over_limit: AtomicU64,
    slowed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Counts of connections and requests since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were served.
    pub served: u64,
    /// Connections that were closed because their client could not be identified.
    pub unidentified: u64,
    /// Connections that were closed because their client had too many connections.
    pub over_limit: u64,
    /// Connections that were served after a wait, because their client had too many open connections or made too many
    /// per second.
    pub slowed_connections: u64,
    /// Requests that were answered after a wait, because their client made too many per second.
    pub slowed_requests: u64,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Acceptor {
    /// Makes an acceptor for listeners that will be at `own_addresses`.
    pub fn new(
        identifier: Identifier,
        refusals: Refusals,
        checks: Arc<SelfChecks>,
        limits: Limits,
        own_addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            identifier,
            refusals,
            checks,
            counters: Counters::default(),
            open: TaskTracker::new(),
            by_address: ClientLimits::new(limits),
            by_pod: ClientLimits::new(limits),
            own_addresses: RwLock::new(own_addresses),
            accept_failure_logged: Mutex::new(None),
            over_limit_logged: Mutex::new(None),
        }
    }

    /// Waits until no connection is open.
    pub async fn all_closed(&self) {
        self.open.close();
        self.open.wait().await;
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            served: read(&self.counters.served),
            unidentified: read(&self.counters.unidentified),
            over_limit: read(&self.counters.over_limit),
            slowed_connections: read(&self.counters.slowed),
            slowed_requests: self.by_pod.slowed_requests(),
        }
    }

    /// Returns the connections that were refused, by kind and pod.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Returns the state of the agent's checks of its own listeners.
    pub fn checks(&self) -> &Arc<SelfChecks> {
        &self.checks
    }

    /// Replaces the addresses of the listeners.
    pub fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        *self.own_addresses.write().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    /// Accepts connections until `stop` completes, including those that already wait at that time. If the client of a
    /// connection is identified, `serve` serves it in a separate task.
    pub async fn accept<F, S>(
        self: Arc<Self>,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
        serve: F,
    ) where
        F: Fn(Identified) -> S + Clone + Send + 'static,
        S: Future<Output = ()> + Send,
    {
        let mut stop = pin!(stop);
        loop {
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                () = &mut stop => return,
            };
            match accepted {
                Ok((stream, peer)) => self.spawn(stream, peer, serve.clone()),
                Err(error) => {
                    if is_due(&self.accept_failure_logged) {
                        warn!("cannot accept a connection: {error}");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_RETRY_INTERVAL) => {}
                        () = &mut stop => return,
                    }
                }
            }
        }
    }

    /// Identifies and serves a connection in a separate task. If its address already has too many connections,
    /// refuses it without a task.
    fn spawn<F, S>(self: &Arc<Self>, stream: TcpStream, peer: SocketAddr, serve: F)
    where
        F: Fn(Identified) -> S + Send + 'static,
        S: Future<Output = ()> + Send,
    {
        let by_address = if self.is_own(peer) {
            None
        } else {
            let admission = self.by_address.admit(&peer.ip());
            if admission.is_none() {
                return self.refuse_over_limit(&peer.ip());
            }
            admission
        };
        let acceptor = Arc::clone(self);
        self.open.spawn(async move {
            if let Some(connection) = acceptor.identify(stream, peer, by_address).await {
                serve(connection).await;
            }
        });
    }

    /// Identifies the client of a connection. Returns `None` if the connection is closed without an answer.
    async fn identify(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        by_address: Option<Admission>,
    ) -> Option<Identified> {
        let deadline = tokio::time::Instant::now() + ADMISSION_TIMEOUT;
        let mut has_waited = false;
        let mut address_permit = None;
        if let Some(admission) = by_address {
            has_waited |= admission.is_queued();
            let permit = self.admitted(Some(admission), deadline, &peer.ip()).await?;
            has_waited |= permit.wait_for_connection().await;
            address_permit = Some(permit);
        }
        let client = match self.identifier.identify(&stream, peer.ip()) {
            Ok(client) => client,
            Err(reason) => {
                self.refuse(stream, peer, reason).await;
                return None;
            }
        };
        let admission = self.by_pod.admit(&client.uid);
        has_waited |= admission.as_ref().is_some_and(Admission::is_queued);
        let permit = self.admitted(admission, deadline, &client.uid).await?;
        count(&self.counters.served);
        if address_permit.is_none() {
            has_waited |= permit.wait_for_connection().await;
        }
        if has_waited {
            count(&self.counters.slowed);
        }
        Some(Identified {
            stream,
            peer,
            client,
            permit,
            _address_permit: address_permit,
        })
    }

    fn is_own(&self, peer: SocketAddr) -> bool {
        let own = self.own_addresses.read().unwrap_or_else(PoisonError::into_inner);
        own.contains(&peer.ip().to_canonical())
    }

    /// Waits for the permit of a connection. Returns `None` if its client has too many connections, and counts and
    /// logs this.
    async fn admitted(
        &self,
        admission: Option<Admission>,
        deadline: tokio::time::Instant,
        whose: &impl std::fmt::Display,
    ) -> Option<Permit> {
        let permit = match admission {
            Some(admission) => admission.permit(deadline).await,
            None => None,
        };
        if permit.is_none() {
            self.refuse_over_limit(whose);
        }
        permit
    }

    /// Counts and logs a refused connection of an address or a pod that has too many connections.
    fn refuse_over_limit(&self, whose: &impl std::fmt::Display) {
        count(&self.counters.over_limit);
        if is_due(&self.over_limit_logged) {
            let limit = self.by_pod.limits().connections;
            warn!(
                %whose,
                "refused: it has {limit} connections open, and this one has waited too long or found the queue full"
            );
        }
    }

    /// Counts and reports a connection without an identified client, unless the connection is one of the agent's own
    /// checks.
    async fn refuse(&self, mut stream: TcpStream, peer: SocketAddr, reason: Unidentified) {
        let refused = if self.is_own(peer) {
            self.checks.take(&mut stream, reason).await
        } else {
            Some(reason)
        };
        let Some(reason) = refused else { return };
        count(&self.counters.unidentified);
        debug!(%peer, "refused: {reason}");
        self.refusals.note(reason.kind(), reason.pod(), 1);
    }
}

/// Returns whether a condition may be logged again. If so, records the current time as the time of the log message.
fn is_due(last: &Mutex<Option<Instant>>) -> bool {
    let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = last.is_none_or(|last| last.elapsed() >= LOG_INTERVAL);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
}
